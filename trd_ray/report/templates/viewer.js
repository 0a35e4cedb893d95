// Puts list, filters, keys and the shown trajectory together.

const COLOURINGS = [
  ["changes", "Changes", "what the teacher took out and put in"],
  ["divergence", "Divergence", "each token's divergence from the teacher, along what was trained on"],
  ["surprise", "Student's surprise", "how unlikely each token is to the student"],
];

class Viewer {
  constructor(runs) {
    this.runs = runs;
    this.run = runs.find((run) => run.num) || runs[0];
    this.beside = null;
    this.row = null;
    this.colouring = "changes";
    this.choice = { kind: null, ended: "", from: -Infinity, to: Infinity, problem: null, words: "", sort: 0 };
    this.drawn = 0;
    this.get = (id) => document.getElementById(id);
    this.list = new TrajectoryList(this.get("list"), this.get("rows"), (row) => this.showRow(row));
    this.ready = false;
  }

  async start() {
    this.listen();
    await this.useRun(this.run);
    performance.mark("viewer-shown");
    for (const run of this.runs) {
      await run.open();
      await run.readAll();
    }
    this.ready = true;
    performance.mark("viewer-searchable");
    this.get("viewer").dataset.searchable = "true";
    if (this.choice.words) this.filter();
    else this.count();
  }

  async useRun(run) {
    await run.open();
    this.run = run;
    this.choice = { ...this.choice, from: run.firstStep, to: run.lastStep, problem: null, kind: null, ended: "" };
    if (this.beside === run) this.beside = null;
    this.fillChoices();
    this.filter();
  }

  fillChoices() {
    const { run } = this;
    for (const id of ["step-from", "step-to"]) {
      this.get(id).min = run.firstStep;
      this.get(id).max = run.lastStep;
    }
    this.get("step-from").value = run.firstStep;
    this.get("step-to").value = run.lastStep;
    const ended = new Set();
    for (let row = 0; row < run.num; row++) endings(run, row).forEach((name) => ended.add(name));
    this.get("reason").replaceChildren(new Option("any way", ""), ...[...ended].sort().map((name) => new Option(name, name)));
    this.get("sort").replaceChildren(...SORTS.map(([name], i) => new Option(name, i)));
    this.get("sort").value = this.choice.sort;
    if (this.get("run")) this.get("run").value = run.number;
    if (this.get("beside")) this.get("beside").value = this.beside ? this.beside.number : "";
    const has = { changes: true, divergence: run.values.most_divergence !== null, surprise: true };
    this.get("colouring").replaceChildren(make("span", "", "Colour by"), ...COLOURINGS.map(([name, label, title]) => {
      const button = make("button", "", label);
      button.type = "button";
      button.title = has[name] ? title : "this run recorded none";
      button.disabled = !has[name];
      button.dataset.colouring = name;
      button.addEventListener("click", () => this.colour(name));
      return button;
    }), make("span", "legend-scale"));
    this.colour(has[this.colouring] ? this.colouring : "changes", false);
  }

  listen() {
    const on = (id, event, act) => { if (this.get(id)) this.get(id).addEventListener(event, act); };
    const number = (id) => Number(this.get(id).value);
    on("search", "input", () => this.filter({ words: this.get("search").value.trim().toLowerCase() }));
    on("reason", "change", () => this.filter({ ended: this.get("reason").value }));
    on("sort", "change", () => this.filter({ sort: number("sort") }));
    on("step-from", "change", () => this.filter({ from: number("step-from") }));
    on("step-to", "change", () => this.filter({ to: number("step-to") }));
    on("run", "change", () => this.useRun(this.runs[number("run")]));
    on("beside", "change", () => this.setBeside(this.get("beside").value));
    on("one-problem", "click", () => this.filter({ problem: null }));
    on("help-button", "click", () => this.get("help").showModal());
    on("detail", "pointermove", tokenTip);
    on("detail", "pointerleave", hideTip);
    document.addEventListener("keydown", (event) => this.key(event));
  }

  filter(change = {}) {
    performance.mark("filter-begin");
    Object.assign(this.choice, change);
    this.found = choose(this.run, this.choice);
    this.drawKinds();
    this.list.show(this.run, this.found.rows, this.row);
    this.count();
    performance.measure("filter", "filter-begin");
  }

  count() {
    const shown = this.found.rows.length.toLocaleString("en");
    const reading = this.choice.words && !this.ready ? ", texts are still being read" : "";
    this.get("count").textContent = `${shown} of ${this.run.num.toLocaleString("en")} trajectories${reading}`;
    const only = this.get("one-problem");
    only.hidden = this.choice.problem === null;
    if (!only.hidden) only.textContent = "of one problem ✕";
  }

  drawKinds() {
    const { counts } = this.found;
    const total = counts.reduce((a, b) => a + b, 0);
    const all = this.kindButton("all", null, total, 0);
    const present = this.presentKinds();
    this.get("kinds").replaceChildren(all, ...present.map((kind, i) => (
      this.kindButton(this.run.values.enums.kind[kind], kind, counts[kind], i + 1))));
  }

  /** Numbers of the kinds that the run has at all. */
  presentKinds() {
    this.run.presentKinds ??= [...new Set(this.run.column.kind)].sort((a, b) => a - b);
    return this.run.presentKinds;
  }

  kindButton(name, kind, count, key) {
    const button = make("button", "", kind === null ? null : make("i", `k-${name.replaceAll(" ", "-")}`), `${name} `,
      make("span", "", count.toLocaleString("en")), make("kbd", "", String(key)));
    button.type = "button";
    button.setAttribute("aria-pressed", String(this.choice.kind === kind));
    button.addEventListener("click", () => this.filter({ kind }));
    return button;
  }

  colour(name, redraw = true) {
    this.colouring = name;
    for (const button of this.get("colouring").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.colouring === name));
    }
    const most = name === "divergence" ? this.run.values.most_divergence : MOST_SURPRISE;
    const scale = this.get("colouring").querySelector(".legend-scale");
    if (name === "changes") {
      scale.replaceChildren(make("del", "", "taken out"), " ", make("ins", "", "put in"), " ", make("span", "common", "common prefix"));
    } else {
      const levels = [...Array(9).keys()].map((i) => make("i", `heat h${i + 1}`));
      scale.replaceChildren("0 ", ...levels, ` ${nats(most)} and more`);
    }
    if (redraw && this.row !== null) this.showRow(this.row);
  }

  setBeside(number) {
    const other = number === "" ? null : this.runs[Number(number)];
    this.beside = other === this.run ? null : other;
    this.get("beside").value = this.beside ? this.beside.number : "";
    if (this.row !== null) this.showRow(this.row);
  }

  async showRow(row) {
    this.row = row;
    const ticket = ++this.drawn;
    const detail = this.get("detail");
    hideTip();
    if (row === null) {
      detail.replaceChildren(make("p", "empty", "No trajectory passes these filters."));
      return;
    }
    const drawings = [this.drawOf(this.run, row)];
    if (this.beside) drawings.push(this.drawBeside(row));
    const drawn = await Promise.all(drawings);
    if (ticket !== this.drawn) return; // another one was chosen meanwhile
    detail.classList.toggle("two", drawn.length > 1);
    detail.replaceChildren(...drawn);
    detail.scrollTop = 0;
  }

  async drawOf(run, row) {
    const options = { colouring: this.colouring, stacked: this.beside !== null, onJump: (r, other) => this.jump(r, other) };
    const article = await drawTrajectory(run, row, options);
    if (this.runs.length > 1) article.prepend(make("h3", `run-name ${run.css}`, run.name));
    return article;
  }

  async drawBeside(row) {
    const { column } = this.run;
    const other = await this.beside.open();
    const match = this.besideRow ?? other.nearest(this.run.promptId(row), column.epoch[row], column.sample_index[row], column.learner_step[row]);
    this.besideRow = null;
    if (match === null) {
      return make("article", "trajectory", make("h3", `run-name ${other.css}`, other.name),
        make("p", "empty", "This run's page has no trajectory of this problem."));
    }
    return this.drawOf(other, match);
  }

  /** Show a trajectory that a chip names; in the list too, if it is of the list's run. */
  jump(run, row) {
    if (run !== this.run) { this.besideRow = row; this.showRow(this.row); return; }
    const at = this.found.rows.indexOf(row);
    if (at >= 0) this.list.select(at);
    else {
      this.row = row;
      this.filter({ kind: null, ended: "", words: "", problem: run.column.problem[row], from: run.firstStep, to: run.lastStep });
      Object.assign(this.get("search"), { value: "" });
      this.fillChoices();
    }
  }

  sibling(by) {
    if (this.row === null) return;
    const rows = this.run.rowsOf[this.run.column.problem[this.row]];
    const next = rows[rows.indexOf(this.row) + by];
    if (next !== undefined) this.jump(this.run, next);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || this.get("help").open) return;
    const search = this.get("search");
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      if (event.target === search && ["Enter", "Escape"].includes(event.key)) this.focusList();
      return;
    }
    const inList = event.target === this.get("list");
    const act = this.keys()[event.key] || (inList ? this.listKeys()[event.key] : undefined);
    if (!act) return;
    event.preventDefault();
    act();
  }

  keys() {
    const move = (by) => () => { this.focusList(); this.list.select(this.list.at + by); };
    const next = (values, value) => values[(values.indexOf(value) + 1) % values.length];
    const colourings = COLOURINGS.map(([name]) => name).filter((name) => name !== "divergence" || this.run.values.most_divergence !== null);
    const keys = {
      j: move(1), k: move(-1), n: () => this.sibling(1), p: () => this.sibling(-1),
      "/": () => { this.reveal(); this.get("search").focus(); this.get("search").select(); },
      "?": () => this.get("help").showModal(), t: toggleTheme,
      c: () => this.colour(next(colourings, this.colouring)), 0: () => this.filter({ kind: null }),
    };
    this.presentKinds().forEach((kind, i) => { keys[i + 1] = () => this.filter({ kind }); });
    if (this.runs.length > 1) {
      const others = [null, ...this.runs.filter((run) => run !== this.run)];
      keys.r = () => this.useRun(next(this.runs, this.run));
      keys.b = () => { const other = next(others, this.beside); this.setBeside(other === null ? "" : other.number); };
    }
    return keys;
  }

  listKeys() {
    const page = Math.max(1, Math.floor(this.get("list").clientHeight / ROW_HEIGHT) - 1);
    const move = (by) => () => this.list.select(this.list.at + by);
    return {
      ArrowDown: move(1), ArrowUp: move(-1), PageDown: move(page), PageUp: move(-page),
      Home: () => this.list.select(0), End: () => this.list.select(this.list.rows.length - 1),
    };
  }

  focusList() {
    this.reveal();
    this.get("list").focus({ preventScroll: true });
  }

  reveal() {
    const box = this.get("viewer").getBoundingClientRect();
    if (box.top < 0 || box.bottom > innerHeight) this.get("trajectories").scrollIntoView();
  }
}

const summaries = document.getElementById("runs");
if (summaries) {
  const runs = JSON.parse(summaries.textContent).map((summary, number) => new RunStore(number, summary));
  new Viewer(runs).start().catch((error) => {
    const old = typeof DecompressionStream === "undefined" ? " This browser is too old for it: use one of 2023 or later." : "";
    document.getElementById("count").textContent = `The trajectories cannot be shown.${old} (${error.message})`;
    throw error;
  });
}
