// A list of which only the rows in view exist.

const ROW_HEIGHT = 50;
const SPARE = 6;

class TrajectoryList {
  constructor(box, inner, onSelect) {
    Object.assign(this, { box, inner, onSelect, rows: [], at: -1, run: null });
    box.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(box);
    inner.addEventListener("click", (event) => {
      const item = event.target.closest("[data-at]");
      if (item) this.select(Number(item.dataset.at));
    });
  }

  /** Show other rows; the selected one stays selected if it is among them. */
  show(run, rows, selected) {
    this.run = run;
    this.rows = rows;
    this.inner.style.height = `${rows.length * ROW_HEIGHT}px`;
    const kept = selected === null ? -1 : rows.indexOf(selected);
    this.at = -1;
    this.draw();
    if (rows.length) this.select(Math.max(0, kept));
    else this.onSelect(null);
  }

  select(at) {
    if (!this.rows.length) return;
    this.at = Math.max(0, Math.min(at, this.rows.length - 1));
    const top = this.at * ROW_HEIGHT;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    const below = top + ROW_HEIGHT - this.box.clientHeight;
    if (below > this.box.scrollTop) this.box.scrollTop = below;
    this.draw();
    this.onSelect(this.rows[this.at]);
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW_HEIGHT) - SPARE);
    const last = Math.min(this.rows.length, first + Math.ceil(this.box.clientHeight / ROW_HEIGHT) + 2 * SPARE);
    const items = [];
    for (let at = first; at < last; at++) items.push(this.item(at));
    this.inner.replaceChildren(...items);
    if (this.at >= first && this.at < last) this.box.setAttribute("aria-activedescendant", `row-${this.at}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  item(at) {
    const { run } = this;
    const row = this.rows[at];
    const kind = run.word("kind", row);
    const item = make("div", `item k-${kind.replaceAll(" ", "-")}`);
    item.id = `row-${at}`;
    item.dataset.at = at;
    item.style.top = `${at * ROW_HEIGHT}px`;
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", String(at === this.at));
    item.setAttribute("aria-setsize", String(this.rows.length));
    item.setAttribute("aria-posinset", String(at + 1));
    const divergence = run.column.divergence_mean[row];
    const level = heat(divergence, run.values.most_divergence);
    const measure = make("span", `heat h${level}`);
    measure.title = Number.isNaN(divergence) ? "no divergence recorded" : `mean divergence ${nats(divergence)}`;
    item.append(
      make("i", "mark"),
      make("span", "text", make("b", "", run.problem(row).trim().split("\n")[0].slice(0, 160) || "(no problem text)"),
        make("small", "", `step ${run.column.learner_step[row]} · ${kind}${run.word("reason", row) ? `: ${run.word("reason", row)}` : ""}`)),
      Number.isNaN(divergence) ? make("span", "") : measure,
    );
    return item;
  }
}

function nats(value) {
  const size = Math.abs(value);
  return `${size >= 100 ? value.toFixed(0) : size >= 1 ? value.toFixed(2) : value.toPrecision(2)} nats`;
}
