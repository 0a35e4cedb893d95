"""The child process of `symbolic.py`: one JSON line `[expected, found]` in, `true` or `false` out."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys

MEMORY_LIMIT_BYTES = 2 * 1024**3
"""Address space of this process. An expression that needs more ends it, which counts as wrong."""
QUESTION_LIMIT_S = 30
"""The parent stops a late child long before. This ends a child whose parent was killed."""


def compare(expected: str, found: str) -> bool:
    """Whether math-verify takes `found` for `expected`."""
    from math_verify import parse, verify

    # The limits on time are those of the parent; math-verify's own would need one alarm a call.
    gold = parse(rf"\boxed{{{expected}}}", parsing_timeout=None)
    target = parse(rf"\boxed{{{found}}}", parsing_timeout=None)
    return bool(gold and target and verify(gold, target, timeout_seconds=None))


def main() -> None:
    """Answer questions until standard input closes."""
    # Libraries may write to standard output; replies go to a copy that they do not know.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    compare("1", "x^2")  # imports and first use, before the first question
    replies.write(b"ready\n")
    for line in sys.stdin.buffer:
        expected, found = json.loads(line)
        signal.alarm(QUESTION_LIMIT_S)
        equal = compare(expected, found)
        signal.alarm(0)
        replies.write(b"true\n" if equal else b"false\n")


if __name__ == "__main__":
    main()
