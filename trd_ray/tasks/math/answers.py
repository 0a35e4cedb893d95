"""Reading final answers out of solutions, and comparing those that are plain numbers.

The answer column of a data file may hold a bare answer (`18`) or a whole solution that states it in
one of the accepted forms, as in GSM8K, where one column ends in `#### 18`. So `data.columns.answer` and
`data.columns.solution` may name the same column.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

_CALCULATOR_MARK = re.compile(r"<<[^<>\n]*>>")
_HASH_LINE = re.compile(r"####[ \t]*([^\n]*)")
_ANSWER_IS = re.compile(r"answer(?: is)?[ \t]*(?::|(?<=is)\b)[ \t]*([^\n]*)", re.IGNORECASE)
_BOXED = re.compile(r"\\f?boxed\s*\{")

# No number has more digits than this, so reading one takes no time worth speaking of.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,12}|[0-9]{1,40})(?:\.[0-9]{1,40})?|\.[0-9]{1,40}"
_NUMBER = re.compile(
    r"(?:[A-Za-z]\w*\s*=\s*)?"  # x =
    r"(?P<sign>[-+]?)\s*[$€£]?\s*(?P<sign_2>[-+]?)"
    rf"(?P<number>{_DIGITS})"
    rf"(?:\s*/\s*(?P<divisor>{_DIGITS}))?"
    r"\s*%?"
    r"(?P<unit>(?:[ \-]+[A-Za-z]{2,}\.?)*)"  # dollars per hour; 2xy is no number
)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "dozen": 12}
# Words that make more of the number than a quantity of something: 3 log, 2 pi, 5 or six, 11 am.
_NO_UNITS = frozenset(
    ["pi", "log", "ln", "exp", "sin", "cos", "tan", "sqrt", "or", "and", "to", "mod", "am", "pm"]
)
_TOLERANCE = Fraction(1, 10**6)
_MAX_ANSWER_LENGTH = 500
"""Characters. What is longer is no final answer."""


def reference_solution(solution: str) -> str:
    r"""A solution as the teacher sees it.

    Calculator marks (`<<48/2=24>>`) are removed, and a last line `#### 24` is written as the prompts ask
    for it, `The final answer is \boxed{24}.`
    """
    text = _CALCULATOR_MARK.sub("", solution).strip()
    lines = text.split("\n")
    last = _HASH_LINE.fullmatch(lines[-1].strip())
    if last is not None and last[1].strip():
        lines[-1] = rf"The final answer is \boxed{{{last[1].strip()}}}."
    return "\n".join(lines)


def final_answer(text: str) -> str:
    """The final answer of a data row: the stated one, or the whole text if none is stated."""
    stated = find_answer(text)
    return text.strip() if stated is None else stated


def find_answer(text: str) -> str | None:
    r"""The final answer that a solution states, or None.

    Of `\boxed{...}` and `####`, the one that stands last counts; "answer is" only where neither is found.
    """
    marked = [(match.start(), match[1]) for match in _HASH_LINE.finditer(text)]
    marked += [
        (match.start(), content)
        for match in _BOXED.finditer(text)
        if (content := _braced(text, start=match.end())) is not None
    ]
    if not marked:
        marked = [(match.start(), match[1]) for match in _ANSWER_IS.finditer(text)]
    stated = [(position, answer) for position, content in marked if (answer := _clean(content))]
    return max(stated)[1] if stated else None


def read_number(answer: str) -> Fraction | None:
    """The value of an answer that is one number, with or without currency, unit, % or `x =`."""
    match = _NUMBER.fullmatch(_plain(answer))
    if match is None:
        return None
    value = Fraction(Decimal(match["number"].replace(",", "")))
    if match["divisor"] is not None:
        divisor = Fraction(Decimal(match["divisor"].replace(",", "")))
        if divisor == 0:
            return None
        value /= divisor
    words = re.findall(r"[a-z]+", match["unit"].lower())
    if _NO_UNITS.intersection(words):
        return None
    for word in words:
        value *= _SCALES.get(word, 1)
    negative = (match["sign"] + match["sign_2"]).count("-") % 2 == 1
    return -value if negative else value


def equal_numbers(left: Fraction, right: Fraction) -> bool:
    """Equal up to what is lost by writing six decimals."""
    return abs(left - right) < _TOLERANCE


def _plain(answer: str) -> str:
    """Without LaTeX that only sets a number nicely."""
    text = answer.replace(r"\$", "$").replace(r"\%", "%").replace("{,}", ",").replace("\N{MINUS SIGN}", "-")
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dt]?frac\s*\{(-?[0-9.]+)\}\s*\{([0-9.]+)\}", r"\1/\2", text)
    text = re.sub(r"\\[,;:! ]|~", " ", text)
    return text.strip()


def _clean(content: str) -> str:
    """An answer without the marks around it: `**$18$.**` is `18`."""
    text = content[:_MAX_ANSWER_LENGTH].strip()
    previous = None
    while text != previous:
        previous = text
        text = text.strip("*_` \t\r\n").rstrip(".").rstrip()
        text = text.removeprefix(":").lstrip()
        for opening, closing in (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            inner = text.removeprefix(opening).removesuffix(closing)
            wrapped = len(text) - len(inner) == len(opening) + len(closing)
            if wrapped and opening not in inner:
                text = inner
    return text


def _braced(text: str, *, start: int) -> str | None:
    """What stands from `start`, just behind an opening brace, to the brace that closes it."""
    depth = 1
    for position in range(start, min(len(text), start + _MAX_ANSWER_LENGTH)):
        if text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return text[start:position]
    return None
