"""What a check found, and how findings are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.table import Table
from rich.text import Text


class Outcome(StrEnum):
    """Of one check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


_COLOURS = {Outcome.PASSED: "green", Outcome.FAILED: "red", Outcome.NOT_APPLICABLE: "dim"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table."""

    check: str
    outcome: Outcome
    measured: str
    """What was found; of a check that does not apply, why."""
    remedy: str = ""
    """What to do; of a failed check only."""


def found(check: str, passed: bool, measured: str, remedy: str) -> Finding:
    """A check that was made."""
    return Finding(
        check=check,
        outcome=Outcome.PASSED if passed else Outcome.FAILED,
        measured=measured,
        remedy="" if passed else remedy,
    )


def not_applicable(check: str, because: str) -> Finding:
    """A check that has nothing to look at here."""
    return Finding(check=check, outcome=Outcome.NOT_APPLICABLE, measured=because)


def failed_by(check: str, error: Exception) -> Finding:
    """A check that an error ended: its first line is what was found, the rest what to do."""
    first, *rest = str(error).splitlines() or [""]
    return Finding(
        check=check,
        outcome=Outcome.FAILED,
        measured=f"{type(error).__name__}: {first}",
        remedy="\n".join(line.strip() for line in rest) or "see the logs of the actors",
    )


def exit_code(findings: Sequence[Finding]) -> int:
    """0 if nothing failed, else 1."""
    return 1 if any(finding.outcome is Outcome.FAILED for finding in findings) else 0


def findings_table(findings: Sequence[Finding]) -> Table:
    """For people."""
    table = Table("check", "result", "measured", "what to do")
    for finding in findings:
        result = f"[{_COLOURS[finding.outcome]}]{finding.outcome.value}[/]"
        table.add_row(Text(finding.check), result, Text(finding.measured), Text(finding.remedy))
    return table


def findings_json(findings: Sequence[Finding]) -> str:
    """One object on one line, for programs."""
    return json.dumps(
        {
            "passed": exit_code(findings) == 0,
            "checks": [
                {
                    "check": finding.check,
                    "outcome": finding.outcome.value.replace(" ", "_"),
                    "measured": finding.measured,
                    "remedy": finding.remedy,
                }
                for finding in findings
            ],
        }
    )
