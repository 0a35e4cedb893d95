"""What answers at once imports nothing heavy: help, configurations, the dry run, completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRD_OPD = "configs/experiment/trd_opd.yaml"
HEAVY = ("torch", "transformers", "ray", "vllm", "deepspeed", "pyarrow", "sympy", "pandas", "huggingface_hub")
# Runs the command line as its entry point does, and says then which of these it imported.
CODE = f"""
import os
import sys
sys.argv[0] = "trd-ray"
from launch.cli import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code
heavy = {HEAVY!r} + tuple(os.environ["HEAVY_TOO"].split())
print("\\nimported:", *[name for name in heavy if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


def trd_ray(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env=os.environ | {"COLUMNS": "200", "HEAVY_TOO": ""} | variables,
    )


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("config", "--help")])
def test_help_does_not_wait_for_the_options_either(arguments: tuple[str, ...]):
    done = trd_ray(*arguments, HEAVY_TOO="numpy yaml omegaconf trd_ray.config")
    assert done.returncode == 0
    assert done.stderr.rstrip().endswith("\nimported:"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (("--help",), 0, "Commands"),
        (("train", "--help"), 0, "--dry-run"),
        (("config", "show", TRD_OPD, "run.seed=5", "--origin"), 0, "seed: 5  # command line"),
        (("config", "diff", TRD_OPD), 0, "run.num_steps: 100 -> 60"),
        (("config", "docs", "learner.lora"), 0, "learner.lora.rank"),
        (("train", TRD_OPD, "--dry-run"), 0, "checked when the run is started, and by --deep"),
        (("train", "configs/experiment/grpo.yaml", "--dry-run", "--no-ray"), 0, "one process, no Ray"),
        (("train", TRD_OPD, "--dry-run", "student.model=models/none/here"), 2, "No model folder"),
        (("train", TRD_OPD, "run.num_step=3"), 2, "nearest is run.num_steps"),
        (("train", TRD_OPD, "--dry-run", "generator.num_actors=4000"), 2, "more cores"),
        (("trian",), 2, "Did you mean"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_nothing_heavy_is_imported(arguments: tuple[str, ...], code: int, shown: str):
    done = trd_ray(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.rstrip().endswith("\nimported:"), done.stderr
    assert shown in done.stdout + done.stderr


def offered(line: str, *, shell: str = "bash") -> list[str]:
    """What a shell is offered at the end of a command line, by the completion protocol.

    Bash makes words of their own of the characters `=` and `:`.
    """
    if shell == "zsh":
        done = trd_ray(_TRD_RAY_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=line)
        return re.findall('"([^"]+)"', done.stdout)
    words = line.replace("=", "\n=\n").replace(" ", "\n").split("\n")
    words = [word for i, word in enumerate(words) if word or i == len(words) - 1]
    if words[-1] == "" and words[-2] == "=":
        words.pop()
    done = trd_ray(
        _TRD_RAY_COMPLETE="complete_bash", COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1)
    )
    assert done.stderr.rstrip().endswith("imported:"), done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trd-ray tra", ["train"]),
        ("trd-ray config ", ["show", "diff", "docs"]),
        ("trd-ray train --dry", ["--dry-run"]),
        ("trd-ray train configs/experiment/trd_opd_t", ["configs/experiment/trd_opd_top_k.yaml"]),
        ("trd-ray train configs/experiment/qw", ["configs/experiment/qwen3/"]),
        (f"trd-ray train {TRD_OPD} learner.zero", ["learner.zero_stage="]),
        (f"trd-ray eval {TRD_OPD} run.seed=3 run.kee", ["run.keep_checkpoints="]),
        (f"trd-ray config show {TRD_OPD} method.divergence=f", ["forward_kl"]),
        (f"trd-ray train {TRD_OPD} pipeline.log_targets=", ["true", "false"]),
        ("trd-ray config diff configs/experiment/grpo", ["configs/experiment/grpo.yaml"]),
        ("trd-ray config docs learner.optimizer.b", ["learner.optimizer.beta1", "learner.optimizer.beta2"]),
        ("trd-ray train --replay runs/x run.kee", ["run.keep_checkpoints="]),
    ],
)  # fmt: skip
def test_completion(line: str, expected: list[str]):
    assert offered(line) == expected


def test_nothing_typed_offers_the_experiments():
    found = offered("trd-ray train ")
    assert TRD_OPD in found and "configs/experiment/qwen3/" in found


def test_completion_of_a_shell_that_keeps_words_whole():
    assert offered(f"trd-ray train {TRD_OPD} method.support=f", shell="zsh") == ["method.support=full"]


def test_the_script_for_a_shell_is_printed():
    # Otherwise the shell is the one that this process has somewhere above it, if any.
    done = trd_ray("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_TRD_RAY_COMPLETE=complete_bash" in done.stdout
