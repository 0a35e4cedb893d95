// What differs between two texts, for the eye: lines are paired, and pieces within them compared.

const MOST_CELLS = 4_000_000;

/** Lines of a text as [start, end] in characters, without the white space around the text. */
function linesOf(text) {
  const first = text.length - text.trimStart().length;
  const last = text.trimEnd().length;
  const lines = [];
  if (last <= first) return lines;
  let start = first;
  while (true) {
    const end = text.indexOf("\n", start);
    if (end < 0 || end >= last) break;
    lines.push([start, end]);
    start = end + 1;
  }
  lines.push([start, last]);
  return lines;
}

/** Pairs [i, j] of a longest common subsequence; null if that would take too long. */
function commonPairs(a, b) {
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head
    && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const n = a.length - head - tail, m = b.length - head - tail;
  if ((n + 1) * (m + 1) > MOST_CELLS) return null;
  const width = m + 1;
  const longest = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      longest[i * width + j] = a[head + i] === b[head + j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const pairs = [];
  for (let i = 0; i < head; i++) pairs.push([i, i]);
  for (let i = 0, j = 0; i < n && j < m;) {
    if (a[head + i] === b[head + j]) pairs.push([head + i++, head + j++]);
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
    else j++;
  }
  for (let t = tail; t > 0; t--) pairs.push([a.length - t, b.length - t]);
  return pairs;
}

/** Rows [i or null, j or null] of line numbers: equal lines side by side, changed ones paired in order. */
function alignLines(left, right) {
  const pairs = commonPairs(left, right) || [];
  const rows = [];
  let i = 0, j = 0;
  for (const [a, b] of [...pairs, [left.length, right.length]]) {
    while (i < a || j < b) rows.push([i < a ? i++ : null, j < b ? j++ : null]);
    if (a < left.length) rows.push([i++, j++]);
  }
  return rows;
}

const PIECE = /\d+|[^\W\d]+|\s+|./gsu;

/** [changed ranges of the first, of the second], each [[start, end], ...] in characters of its line. */
function changedRanges(before, after) {
  if (before === null || after === null) {
    return [before ? [[0, before.length]] : [], after ? [[0, after.length]] : []];
  }
  if (before === after) return [[], []];
  const a = before.match(PIECE) || [], b = after.match(PIECE) || [];
  const pairs = commonPairs(a, b);
  if (pairs === null) return [[[0, before.length]], [[0, after.length]]];
  return [leftOver(a, new Set(pairs.map((pair) => pair[0]))), leftOver(b, new Set(pairs.map((pair) => pair[1])))];
}

function leftOver(pieces, common) {
  const ranges = [];
  let at = 0;
  pieces.forEach((piece, i) => {
    if (!common.has(i)) {
      const last = ranges[ranges.length - 1];
      if (last && last[1] === at) last[1] += piece.length;
      else ranges.push([at, at + piece.length]);
    }
    at += piece.length;
  });
  return ranges;
}

function commonCharacters(before, after) {
  let n = 0;
  while (n < before.length && n < after.length && before[n] === after[n]) n++;
  return n;
}
