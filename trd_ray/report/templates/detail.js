// One trajectory: what is known of it, and its texts beside each other.

/** The whole of one trajectory. `stacked`: the texts below each other, for a narrow column. */
async function drawTrajectory(run, row, { colouring, stacked, onJump }) {
  const data = await run.read(row);
  const [sides, compare] = sidesOf(run, row, data);
  const prefix = commonPrefix(run, row, sides);
  const article = make("article", "trajectory", heading(run, row), siblings(run, row, onJump),
    make("pre", "problem", run.problem(row)));
  article.setAttribute("aria-label", `${run.word("kind", row)}, step ${run.column.learner_step[row]}`);
  if (prefix) article.append(prefixNote(prefix, sides));
  article.append(texts(run, row, sides, { colouring, compare, prefix, stacked }));
  for (const one of sides) {
    if (one.cut) article.append(make("p", "notice", `${one.name}: ${one.cut.toLocaleString("en")} characters at the end are not on this page.`));
  }
  const trained = sides.find((one) => one.divergence);
  if (trained) article.append(...alongTheTokens(run, trained, article));
  else article.append(make("p", "note", "No divergence is recorded for this trajectory: it was not trained on, or learner.record_token_values was off."));
  const reference = await run.reference(row);
  if (reference) article.append(make("details", "", make("summary", "", "Reference solution"), make("pre", "", reference)));
  return article;
}

function heading(run, row) {
  const { column } = run;
  const kind = run.word("kind", row);
  const [low, high] = [column.policy_version_min[row], column.policy_version_max[row]];
  const ended = endings(run, row);
  const kept = column.num_kept[row];
  const source = run.word("source", row);
  return make("header", "",
    make("span", `badge k-${kind.replaceAll(" ", "-")}`, kind),
    fact("step", column.learner_step[row]),
    low < 0 ? null : fact("policy version", low === high ? low : `${low} … ${high}`),
    make("span", "", ...ended.flatMap((name, i) => [i ? ", " : "", make("b", "", name)])),
    kept && source !== "rollout" ? make("span", "", make("b", "", String(kept)), ` of ${column.num_trajectory_tokens[row]} tokens are the student's`) : null,
    fact("scored under", run.word("context", row)),
    make("span", "id", `${run.promptId(row)} · epoch ${column.epoch[row]} · sample ${column.sample_index[row]}`));
}

function fact(name, value) {
  return make("span", "", `${name} `, make("b", "", String(value)));
}

/** The other trajectories of the same problem. */
function siblings(run, row, onJump) {
  const rows = run.rowsOf[run.column.problem[row]];
  if (rows.length < 2) return null;
  const bar = make("nav", "siblings", `This problem, ${rows.length} times: `);
  bar.setAttribute("aria-label", "Trajectories of this problem");
  const at = rows.indexOf(row);
  const from = Math.max(0, Math.min(at - 10, rows.length - 20));
  for (const other of rows.slice(from, from + 20)) {
    const kind = run.word("kind", other);
    const chip = make("button", `chip k-${kind.replaceAll(" ", "-")}`, make("i"), `step ${run.column.learner_step[other]}`);
    chip.type = "button";
    chip.title = kind;
    if (other === row) chip.setAttribute("aria-current", "true");
    chip.addEventListener("click", () => onJump(run, other));
    bar.append(chip);
  }
  if (rows.length > 20) bar.append(` (20 of ${rows.length} shown)`);
  return bar;
}

function prefixNote({ num, exact }, sides) {
  const [before, after] = sides;
  const note = make("p", "prefix-note", make("span", "common", "Common prefix"), ": ",
    make("b", "", String(num)), ` of ${before.numTokens} tokens of y_o and ${after.numTokens} of y_r`);
  if (!exact && num > 0) note.append(" (marked below by characters)");
  return note;
}

function texts(run, row, sides, { colouring, compare, prefix, stacked }) {
  const grid = make("div", `texts${sides.length < 2 || stacked ? " single" : ""}`);
  const rows = sides.length === 2
    ? alignLines(...sides.map((one) => one.lines.map(([a, b]) => one.text.slice(a, b))))
    : sides[0].lines.map((_, i) => [i]);
  const columns = sides.map((one, s) => {
    const shown = valuesFor(run, one, colouring);
    const head = sideHead(one, colouring, shown);
    const lines = rows.map((pair) => drawRow(sides, pair, s, {
      compare: compare && colouring === "changes", shown, prefix: prefix ? prefix.characters : 0 }));
    if (one.firstWrong >= one.lines.length && !one.cut) lines.push(missingLine(one));
    const cells = [head, ...lines];
    cells.forEach((cell) => { cell.dataset.side = s; });
    cells.forEach((cell) => { cell.side = { one, shown }; });
    return one.spans || !shown ? cells : [...cells, strip(one, shown)];
  });
  if (columns.length < 2 || stacked) grid.append(...columns.flat());
  else {
    const most = Math.max(...columns.map((cells) => cells.length));
    for (let i = 0; i < most; i++) grid.append(...columns.map((cells) => cells[i] || make("div", "ln none")));
  }
  return grid;
}

function sideHead(one, colouring, shown) {
  const head = make("div", "side-head", one.name, one.symbol ? " " : null, one.symbol ? make("var", "", one.symbol) : null,
    " ", one.right ? make("em", one.right === "right" ? "ok" : "no", one.right) : null,
    one.numTokens ? make("small", "", ` ${one.numTokens.toLocaleString("en")} tokens`) : null);
  if (colouring !== "changes" && !shown && one.text) {
    head.append(make("small", "", ` · ${colouring === "divergence" ? "divergence is known along what was trained on" : "not recorded"}`));
  }
  else if (shown && !one.spans) head.append(make("small", "", " · tokens below: they could not be placed in the text"));
  return head;
}

function drawRow(sides, pair, s, { compare, shown, prefix }) {
  const number = pair[s];
  if (number === null || number === undefined) return make("div", "ln none");
  const one = sides[s];
  const whole = (which) => {
    const line = sides[which] && pair[which] !== null && pair[which] !== undefined ? sides[which].lines[pair[which]] : null;
    return line ? sides[which].text.slice(line[0], line[1]) : null;
  };
  const changed = compare ? changedRanges(whole(0), whole(1))[s] : [];
  const code = drawLine(one, number, { changed, prefix, shown: one.spans ? shown : null, tag: s ? "ins" : "del" });
  const wrong = number === one.firstWrong;
  return make("div", `ln${wrong ? " first-wrong" : ""}`, make("span", "no", String(number + 1)), code,
    wrong ? make("span", "flag", "first wrong step") : null);
}

function missingLine(one) {
  return make("div", "ln first-wrong", make("span", "no", String(one.lines.length + 1)),
    make("code", "", make("i", "", "missing")), make("span", "flag", "first wrong step"));
}

/** Tokens one after another, where they could not be placed in the text. */
function strip(one, shown) {
  const cells = make("div", "ln strip");
  one.tokens.forEach((token, t) => {
    const cell = make("span", "sign", token.piece || `#${token.id}`);
    mark(cell, t, shown);
    cells.append(cell);
  });
  cells.side = { one, shown };
  return cells;
}

/** Where along the trajectory the divergence is, and the tokens where it is largest. */
function alongTheTokens(run, one, article) {
  const most = run.values.most_divergence;
  const length = one.divergence.length;
  const bins = Math.min(length, 160);
  const bar = make("div", "profile");
  for (let b = 0; b < bins; b++) {
    const part = one.divergence.subarray(Math.floor(b * length / bins), Math.floor((b + 1) * length / bins));
    const value = part.reduce((a, c) => Math.max(a, c), -Infinity);
    bar.append(make("i", `h${heat(value, most)}`));
  }
  const mean = one.divergence.reduce((a, b) => a + b, 0) / length;
  const top = [...one.divergence.keys()].sort((a, b) => one.divergence[b] - one.divergence[a]).slice(0, 8);
  const chips = top.filter((t) => one.divergence[t] > 0).map((t) => {
    const chip = make("button", "chip", make("code", "", pieceOf(one, t)), ` ${nats(one.divergence[t])}`);
    chip.type = "button";
    chip.title = `token ${t + 1} of ${length}`;
    chip.addEventListener("click", () => flash(article, one, t));
    return chip;
  });
  const title = `Divergence along ${one.symbol || one.name}: mean ${nats(mean)}`;
  return [make("div", "along", make("b", "", title), bar, make("div", "chips", "Largest at ", ...chips))];
}

function pieceOf(one, t) {
  const token = one.tokens[t];
  if (!token) return "?";
  if (token.piece === undefined) return `#${token.id}`;
  return token.piece === "" ? "‹end›" : token.piece.replaceAll("\n", "⏎").replaceAll(" ", "␣");
}

function flash(article, one, t) {
  for (const element of article.querySelectorAll(`[data-token="${t}"]`)) {
    if (element.closest(".ln").side.one !== one) continue;
    element.scrollIntoView({ block: "nearest" });
    element.classList.add("flash");
    setTimeout(() => element.classList.remove("flash"), 1500);
  }
}

/** What is known of the token under the pointer. */
function tokenTip(event) {
  const element = event.target.closest("[data-token]");
  if (!element) { hideTip(); return; }
  const { one } = element.closest(".ln").side;
  const t = Number(element.dataset.token);
  const lines = [`token ${t + 1} of ${one.numTokens}, id ${one.tokens[t].id}`];
  if (one.divergence) lines.push(`divergence ${nats(one.divergence[t])}`);
  if (one.studentLogprobs) lines.push(`student before the step: ${chance(one.studentLogprobs[t])}`);
  if (one.rolloutLogprobs) lines.push(`student when it wrote this: ${chance(one.rolloutLogprobs[t])}`);
  showTip(event, make("b", "", pieceOf(one, t)), ...lines.map((line) => make("div", "", line)));
}

function chance(logprob) {
  return `${(100 * Math.exp(logprob)).toPrecision(3)}%`;
}
