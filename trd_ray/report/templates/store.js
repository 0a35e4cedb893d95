// One run's trajectories: an index that is unpacked at once, and blocks of texts that are when needed.

class RunStore {
  constructor(number, summary) {
    this.number = number;
    this.name = summary.name;
    this.css = summary.css;
    this.num = summary.num;
    this.blocks = new Map();
    this.haystack = [];
  }

  /** Unpack the index, once. */
  open() {
    this.opening ??= this.readIndex();
    return this.opening;
  }

  async readIndex() {
    const { values, arrays } = await unpack(`run-${this.number}-index`);
    Object.assign(this, { values, column: arrays, block: values.block });
    this.rowsOf = values.problems.map(() => []);
    for (let row = 0; row < this.num; row++) this.rowsOf[arrays.problem[row]].push(row);
    this.problemOf = new Map(values.prompt_ids.map((id, problem) => [id, problem]));
    this.firstStep = this.num ? arrays.learner_step.reduce((a, b) => Math.min(a, b)) : 0;
    this.lastStep = this.num ? arrays.learner_step.reduce((a, b) => Math.max(a, b)) : 0;
    return this;
  }

  /** The word of an enum column. */
  word(name, row) {
    return this.values.enums[name][this.column[name][row]];
  }

  problem(row) {
    return this.values.problems[this.column.problem[row]];
  }

  promptId(row) {
    return this.values.prompt_ids[this.column.problem[row]];
  }

  async reference(row) {
    this.references ??= unpack(`run-${this.number}-references`);
    return (await this.references).values.references[this.column.problem[row]];
  }

  readBlock(number) {
    if (!this.blocks.has(number)) {
      this.blocks.set(number, unpack(`run-${this.number}-block-${number}`).then(withOffsets));
    }
    return this.blocks.get(number);
  }

  /** Texts and per-token numbers of one trajectory. */
  async read(row) {
    const block = await this.readBlock(Math.floor(row / this.block));
    const i = row % this.block;
    const part = (name) => block.arrays[name].subarray(block.offsets[name][i], block.offsets[name][i + 1]);
    const numbers = (name) => { const bits = part(name); return bits.length ? fromHalves(bits) : null; };
    const tokens = (name) => Array.from(part(name), (t) => (
      { id: this.column.vocabulary[t], piece: this.values.pieces.length ? this.values.pieces[t] : undefined }));
    const text = (name) => block.values[name][i];
    const cut = (name) => block.values[`${name}_cut`][i];
    return {
      rolloutText: text("rollout_text"), rolloutCut: cut("rollout_text"),
      trajectoryText: text("trajectory_text"), trajectoryCut: cut("trajectory_text"),
      refinementText: text("refinement_text"), refinementCut: cut("refinement_text"),
      rolloutTokens: tokens("rollout_token_ids"), trajectoryTokens: tokens("trajectory_token_ids"),
      rolloutLogprobs: numbers("rollout_logprobs"),
      divergence: numbers("trajectory_divergence"),
      studentLogprobs: numbers("trajectory_student_logprobs"),
    };
  }

  /** Make all texts searchable, a block at a time so that the page stays alive. */
  async readAll() {
    const number = Math.ceil(this.num / this.block);
    for (let b = 0; b < number; b++) {
      const { values } = await this.readBlock(b);
      for (let i = 0; i < values.rollout_text.length; i++) {
        const row = b * this.block + i;
        const texts = [this.problem(row), this.promptId(row), values.rollout_text[i], values.trajectory_text[i],
          values.refinement_text[i]];
        this.haystack[row] = texts.filter(Boolean).join("\n").toLowerCase();
      }
      if (b % 4 === 3) await new Promise((resume) => setTimeout(resume));
    }
  }

  /** The trajectory of a problem that is nearest to one of another run: same sample, then nearest step. */
  nearest(promptId, epoch, sample, step) {
    const problem = this.problemOf.get(promptId);
    if (problem === undefined) return null;
    const cost = (row) => [
      this.column.epoch[row] !== epoch || this.column.sample_index[row] !== sample ? 1 : 0,
      Math.abs(this.column.learner_step[row] - step),
    ];
    return this.rowsOf[problem].reduce((best, row) => {
      const [a, b] = [cost(best), cost(row)];
      return b[0] < a[0] || (b[0] === a[0] && b[1] < a[1]) ? row : best;
    });
  }
}

function withOffsets({ values, arrays }) {
  const offsets = {};
  for (const name of Object.keys(arrays)) {
    if (!arrays[`${name}_length`]) continue;
    const ends = new Uint32Array(arrays[`${name}_length`].length + 1);
    arrays[`${name}_length`].forEach((length, i) => { ends[i + 1] = ends[i] + length; });
    offsets[name] = ends;
  }
  return { values, arrays, offsets };
}

/** Ways to sort: [name, column or null for the order of the run, descending]. */
const SORTS = [
  ["oldest first", "learner_step", false],
  ["newest first", "learner_step", true],
  ["most divergent (mean)", "divergence_mean", true],
  ["most divergent token", "divergence_max", true],
  ["least likely to the student", "support", false],
  ["shortest common prefix", "num_common", false],
  ["longest", "num_trajectory_tokens", true],
];

/**
 * The rows that pass, sorted, and how many of each kind would without a choice of kind.
 * choice: {kind, ended, from, to, problem, words, sort}
 */
function choose(run, choice) {
  const { column } = run;
  const counts = new Uint32Array(run.values.enums.kind.length);
  const found = [];
  for (let row = 0; row < run.num; row++) {
    const step = column.learner_step[row];
    if (step < choice.from || step > choice.to) continue;
    if (choice.problem !== null && column.problem[row] !== choice.problem) continue;
    if (choice.ended && !endedLike(run, row, choice.ended)) continue;
    if (choice.words && !(run.haystack[row] || "").includes(choice.words)) continue;
    counts[column.kind[row]]++;
    if (choice.kind === null || column.kind[row] === choice.kind) found.push(row);
  }
  const [, name, down] = SORTS[choice.sort];
  const values = column[name];
  const absent = (row) => Number.isNaN(values[row]) || (name === "num_common" && values[row] < 0);
  found.sort((a, b) => {
    if (absent(a) !== absent(b)) return absent(a) ? 1 : -1;
    return (absent(a) ? 0 : down ? values[b] - values[a] : values[a] - values[b]) || a - b;
  });
  return { rows: found, counts };
}

/** `ended` is "trained on", "rejected: REASON" or "refused: REASON". */
function endedLike(run, row, ended) {
  return endings(run, row).includes(ended);
}

function endings(run, row) {
  const reason = run.word("reason", row), gate = run.word("gate_reason", row);
  const names = [reason ? `rejected: ${reason}` : "trained on"];
  if (gate) names.push(`refused: ${gate}`);
  return names;
}
