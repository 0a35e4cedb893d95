// Where each token is in its text.
//
// The texts were decoded without special tokens; a piece is what its token adds in the middle of a text.
// What the pieces say is checked against the text, character for character: nothing is coloured by a guess.

const PART = "\uFFFD"; // what a token that is a part of a character decodes to

/**
 * [[start, end], ...] in characters, or null if the pieces do not make up the text.
 * `whole`: these are all tokens of the text.
 */
function placeTokens(text, pieces, whole) {
  const spans = [];
  let at = 0;
  let i = 0;
  while (i < pieces.length) {
    const piece = pieces[i];
    if (at >= text.length && piece) break; // the text was cut here
    if (piece === undefined) return null;
    if (!piece.includes(PART)) {
      const size = fitsAt(text, at, piece);
      if (size < 0) return null;
      spans.push([at, at + size]);
      at += size;
      i++;
      continue;
    }
    const [next, end] = endOfParts(text, at, pieces, i);
    if (end < 0) return null;
    // Several tokens make these characters together.
    for (; i < next; i++) spans.push([at, end]);
    at = end;
  }
  return whole && at < text.trimEnd().length ? null : spans;
}

/** How many characters the piece takes at this place; -1 if the text says something else. */
function fitsAt(text, at, piece) {
  if (text.startsWith(piece, at)) return piece.length;
  const rest = text.length - at;
  if (rest < piece.length && piece.startsWith(text.slice(at))) return rest; // cut within the token
  if (at === 0) {
    const bare = piece.trimStart(); // some decoders drop the first space
    if (bare.length < piece.length && text.startsWith(bare)) return bare.length;
  }
  return -1;
}

/** [index of the next token that is no part of a character, where its text begins]; -1 if it is not found. */
function endOfParts(text, at, pieces, from) {
  let next = from;
  while (next < pieces.length && (!pieces[next] || pieces[next].includes(PART))) next++;
  if (next >= pieces.length) return [pieces.length, text.length];
  const end = text.indexOf(pieces[next], at);
  // A character has at most 4 bytes, so each part adds at most one character, and a joined one two.
  return [next, end >= 0 && end - at <= 2 * (next - from) + 2 ? end : -1];
}

/** 0 to 9: how strong the colour of a value is. The root spreads the small ones. */
function heat(value, most) {
  if (!(value > 0) || !(most > 0)) return 0;
  return Math.round(9 * Math.sqrt(Math.min(1, value / most)));
}
