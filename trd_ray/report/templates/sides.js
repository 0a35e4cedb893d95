// The texts of one trajectory as they are set beside each other: y_o and y_r, or one alone.

const WORDS = { "-1": null, 0: "wrong", 1: "right" };

/** One text with all that is known of its tokens. */
function side(fields) {
  const whole = !fields.cut && fields.tokens.length === fields.numTokens;
  const spans = fields.tokens.length && fields.tokens[0].piece !== undefined
    ? placeTokens(fields.text, fields.tokens.map((token) => token.piece), whole) : null;
  return { ...fields, spans, lines: linesOf(fields.text) };
}

/** [sides, compare]: compare is false where two texts have nothing to do with each other. */
function sidesOf(run, row, data) {
  const { column } = run;
  const source = run.word("source", row);
  const rollout = side({
    name: "rollout", symbol: "y_o", text: data.rolloutText || "", cut: data.rolloutCut,
    tokens: data.rolloutTokens, numTokens: column.num_rollout_tokens[row],
    right: WORDS[column.rollout_correct[row]], firstWrong: column.rollout_first_wrong_step[row],
    rolloutLogprobs: data.rolloutLogprobs, divergence: null, studentLogprobs: null,
  });
  if (source === "rollout") {
    Object.assign(rollout, { divergence: data.divergence, studentLogprobs: data.studentLogprobs });
    if (!data.refinementText) return [[rollout], false];
    const refused = side({
      name: "refused refinement", symbol: "y_r", text: data.refinementText, cut: data.refinementCut, tokens: [],
      numTokens: 0, right: null, firstWrong: -1, rolloutLogprobs: null, divergence: null, studentLogprobs: null,
    });
    return [[rollout, refused], column.num_kept[row] === 0];
  }
  const names = { refined: ["refinement", "y_r"], spliced: ["spliced refinement", "y_r"], teacher: ["teacher's answer", ""],
    reference: ["reference solution", "y*"], speculative: ["speculative answer", ""] };
  const [name, symbol] = names[source];
  const trained = side({
    name, symbol, text: data.trajectoryText || "", cut: data.trajectoryCut, tokens: data.trajectoryTokens,
    numTokens: column.num_trajectory_tokens[row], right: WORDS[column.trajectory_correct[row]],
    firstWrong: column.trajectory_first_wrong_step[row], rolloutLogprobs: null,
    divergence: data.divergence, studentLogprobs: data.studentLogprobs,
  });
  if (column.rollout_correct[row] < 0) return [[trained], false];
  return [[rollout, trained], column.trajectory_correct[row] >= 0];
}

/** What a colouring shows at each token of a side: {values, most} or null if that is not recorded. */
function valuesFor(run, one, colouring) {
  if (colouring === "divergence" && one.divergence) {
    return { values: one.divergence, most: run.values.most_divergence };
  }
  const logprobs = one.studentLogprobs || one.rolloutLogprobs;
  if (colouring === "surprise" && logprobs) {
    return { values: logprobs.map((logprob) => -logprob), most: MOST_SURPRISE };
  }
  return null;
}

const MOST_SURPRISE = 4; // nats: a token that the student gives 2%

/** Characters at the beginning that are the same in both, and how that is known. */
function commonPrefix(run, row, sides) {
  if (sides.length < 2) return null;
  const num = run.column.num_common[row];
  const [before, after] = sides;
  if (num < 0) return null;
  const ends = sides.map((one) => (one.spans && (num === 0 ? 0 : one.spans[num - 1] ? one.spans[num - 1][1] : null)));
  const exact = ends[0] !== null && ends[0] !== undefined && ends[0] === ends[1];
  return { num, characters: exact ? ends[0] : commonCharacters(before.text, after.text), exact };
}

/** One line of a side, cut where anything changes: a change, a token, the end of the common prefix. */
function drawLine(one, number, { changed, prefix, shown, tag }) {
  const [start, end] = one.lines[number];
  const cuts = new Set([start, end]);
  for (const [a, b] of changed) { cuts.add(start + a); cuts.add(start + b); }
  if (prefix > start && prefix < end) cuts.add(prefix);
  const tokens = shown && one.spans ? tokensIn(one, start, end) : [];
  for (const t of tokens) { cuts.add(Math.max(start, one.spans[t][0])); cuts.add(Math.min(end, one.spans[t][1])); }
  const places = [...cuts].sort((a, b) => a - b);
  const code = make("code", "");
  let next = 0;
  for (let p = 0; p + 1 < places.length; p++) {
    const [a, b] = [places[p], places[p + 1]];
    const isChanged = changed.some(([x, y]) => start + x <= a && b <= start + y);
    const piece = make(isChanged ? tag : "span", b <= prefix ? "common" : "", one.text.slice(a, b));
    while (next < tokens.length && one.spans[tokens[next]][1] <= a) next++;
    const t = tokens[next];
    if (t !== undefined && one.spans[t][0] <= a) mark(piece, t, shown);
    code.append(piece);
  }
  if (prefix >= start && prefix <= end && prefix > 0) placeEnd(code, one, start, prefix);
  if (shown && one.spans) addInvisible(code, one, number, shown);
  return code;
}

function tokensIn(one, start, end) {
  const found = [];
  one.spans.forEach(([a, b], t) => { if (b > a && a < end && b > start) found.push(t); });
  return found;
}

function mark(element, token, { values, most }) {
  element.classList.add("token", `h${heat(values[token], most)}`);
  element.dataset.token = token;
}

/** A bar where the common prefix ends. */
function placeEnd(code, one, start, prefix) {
  const bar = make("span", "prefix-end");
  bar.title = "the common prefix ends here";
  let at = start;
  for (const child of [...code.childNodes]) {
    if (at >= prefix) { code.insertBefore(bar, child); return; }
    at += child.textContent.length;
  }
  code.append(bar);
}

/** Line ends and special tokens have no characters of their own here, but values. */
function addInvisible(code, one, number, shown) {
  const [, end] = one.lines[number];
  const until = number + 1 < one.lines.length ? one.lines[number + 1][0] : Infinity;
  one.spans.forEach(([a, b], t) => {
    if (t >= shown.values.length) return;
    const atEnd = a >= end && a < until;
    if (!atEnd) return;
    const text = one.text.slice(a, b);
    const sign = make("span", "sign", text === "" ? "‹end›" : "⏎");
    mark(sign, t, shown);
    code.append(sign);
  });
}
