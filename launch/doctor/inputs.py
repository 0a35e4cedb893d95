"""What models, tokenizers and templates say of each other, before an actor is started."""

from __future__ import annotations

from collections.abc import Callable

from launch.doctor.finding import Finding, failed_by, found, not_applicable
from launch.preflight import check_run
from trd_ray.assembly import RunInputs
from trd_ray.config import TrdConfig
from trd_ray.errors import ConfigError, DataError, MissingDependencyError, ModelError
from trd_ray.model_files import model_facts
from trd_ray.models import load_tokenizer

_PROBLEM = [{"role": "user", "content": "1+2"}]


def read_checked(config: TrdConfig, self_teaching: TrdConfig) -> tuple[RunInputs, RunInputs] | Finding:
    """Inputs of the run, and of one in which the student is its own teacher; or why there are none."""
    try:
        return check_run(config, no_ray=False), check_run(self_teaching, no_ray=False)
    except (ConfigError, ModelError, DataError, MissingDependencyError) as error:
        return failed_by("options, models and data", error)


def check_tokenizers(inputs: RunInputs) -> Finding:
    """`check_run` has compared them; this says with what."""
    student, teacher = load_tokenizer(inputs.student_path), load_tokenizer(inputs.teacher_path)
    same = student.get_vocab() == teacher.get_vocab() and student.eos_token_id == teacher.eos_token_id
    return found(
        "tokenizers", same,
        f"{len(student.get_vocab()):,} tokens, end token {student.eos_token!r}; the teacher's are "
        f"{'the same' if same else 'others'}",
        "choose a teacher of the student's model family",
    )  # fmt: skip


def check_templates(inputs: RunInputs) -> Finding:
    """They may differ: each role's prompts go through its own."""
    texts = [
        load_tokenizer(path).apply_chat_template(_PROBLEM, tokenize=False, add_generation_prompt=True)
        for path in (inputs.student_path, inputs.teacher_path)
    ]
    same = texts[0] == texts[1]
    return found(
        "chat templates", True,
        f"student's and teacher's {'agree on a question' if same else 'differ: each has its own prompts'}",
        "",
    )  # fmt: skip


def check_padding(inputs: RunInputs) -> Finding:
    """Rows of an embedding beyond the tokenizer are cut on both sides, and are never a token."""
    size = max(load_tokenizer(inputs.student_path).get_vocab().values()) + 1
    rows = {
        name: model_facts(path).vocab_size
        for name, path in (("student", inputs.student_path), ("teacher", inputs.teacher_path))
    }
    return found(
        "vocabulary padding", all(number >= size for number in rows.values()),
        f"{size:,} tokens; "
        + ", ".join(f"{name}: {n:,} rows, {n - size:,} of them padding" for name, n in rows.items()),
        "the model has fewer rows than its tokenizer has tokens: it is not the model of this tokenizer",
    )  # fmt: skip


INPUT_CHECKS: tuple[tuple[str, Callable[[RunInputs], Finding]], ...] = (
    ("tokenizers", check_tokenizers),
    ("chat templates", check_templates),
    ("vocabulary padding", check_padding),
)


def input_findings(inputs: RunInputs | None) -> list[Finding]:
    """Without inputs none of them applies."""
    because = "models and data could not be read"
    return [
        not_applicable(name, because) if inputs is None else check(inputs) for name, check in INPUT_CHECKS
    ]
