"""Many runs, each with the fault of its seed.

    python -m tests.e2e.chaos.campaign --seeds 0..99 --out docs/data/chaos.json

One at a time. What is in the file already is skipped, so that a campaign can be broken off and continued.
With `--table PAGE.md` the table in a page is made anew from the file, and nothing is run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.e2e.chaos.faults import PATIENCE, Fault, Kind, draw
from tests.e2e.chaos.runs import Outcome, Result, can_fill_a_disk, rehearse

BEGIN, END = "<!-- campaign: begin -->", "<!-- campaign: end -->"


def read_results(path: Path) -> dict[int, Result]:
    """By seed; {} if there is no file."""
    if not path.exists():
        return {}
    results = {}
    for raw in json.loads(path.read_text(encoding="utf-8")):
        fault = Fault.read(json.dumps(raw["fault"]))
        results[fault.seed] = Result(**(raw | {"fault": fault, "outcome": Outcome(raw["outcome"])}))
    return results


def write_results(path: Path, results: Mapping[int, Result]) -> None:
    rows = [dataclasses.asdict(results[seed]) for seed in sorted(results)]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def table(results: Mapping[int, Result]) -> str:
    """Markdown: a summary and one row a run."""
    outcomes = Counter(result.outcome for result in results.values())
    summary = ", ".join(f"{num} {outcome}" for outcome, num in sorted(outcomes.items()))
    lost = sum(result.lost for result in results.values())
    duplicated = sum(result.duplicated for result in results.values())
    orphans = sum(result.orphans for result in results.values())
    lines = [
        f"{len(results)} runs: {summary}. Prompts lost: {lost}, counted twice: {duplicated}; "
        f"processes left behind: {orphans}.",
        "",
        "| seed | fault | role | stage | outcome | restarts | seconds | lost | twice | orphans |",
        "|---:|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [_row(results[seed]) for seed in sorted(results)]
    return "\n".join(lines)


def _row(result: Result) -> str:
    fault = result.fault
    kind = f"{fault.kind} {fault.slow_s:g} s" if fault.kind is Kind.SLOW else str(fault.kind)
    cells = (
        fault.seed, kind, fault.target.replace("_", " "), fault.moment, result.outcome, result.restarts,
        f"{result.seconds:.0f}", result.lost, result.duplicated, result.orphans,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def update_page(page: Path, results: Mapping[int, Result]) -> None:
    """Put the table between the page's two markers."""
    text = page.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    page.write_text(f"{before}\n{table(results)}\n{after}", encoding="utf-8")


def run(seeds: Sequence[int], path: Path) -> dict[int, Result]:
    """Every seed that has no result yet. What a failed run wrote is kept, and its place is printed."""
    results = read_results(path)
    for seed in seeds:
        fault = draw(seed)
        if seed in results or (fault.kind is Kind.FULL_DISK and not can_fill_a_disk()):
            continue
        folder = Path(tempfile.mkdtemp(prefix=f"chaos_{seed}_"))
        print(f"seed {seed}: {fault.words} ...", flush=True)
        result = rehearse(fault, folder)
        print(_row(result), *result.problems, sep="\n  ", flush=True)
        if result.outcome is Outcome.FAILED:
            print(f"  kept in {folder}", flush=True)
        else:
            shutil.rmtree(folder)
        # Another campaign may have written meanwhile.
        results = read_results(path) | {seed: result}
        write_results(path, results)
    return results


def _seeds(text: str) -> range:
    first, _, last = text.partition("..")
    return range(int(first), int(last or first) + 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=_seeds, default=_seeds("0..99"), help="for example 0..99")
    parser.add_argument("--out", type=Path, required=True, help="results, JSON")
    parser.add_argument("--table", type=Path, help="page whose table is made anew; nothing is run")
    arguments = parser.parse_args()
    if arguments.table is not None:
        update_page(arguments.table, read_results(arguments.out))
        return 0
    print(f"limits are {PATIENCE:g} times those of a quiet machine (TRD_CHAOS_PATIENCE)", flush=True)
    results = run(arguments.seeds, arguments.out)
    print(table(results))
    return int(any(result.outcome is Outcome.FAILED for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
