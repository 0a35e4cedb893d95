"""Each comparison of the real actors passes where all agree and fails where one does not. Scripted roles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from launch.doctor.finding import Finding, Outcome
from launch.doctor.parity import PARITY_CHECKS, Probe, make_checks
from launch.doctor.parity_names import (
    CHECKPOINT,
    DECODING,
    FUSED,
    LEARNER,
    PADDING_IDS,
    PARITY_NAMES,
    PUSH,
    ZERO,
)
from launch.doctor.self_teaching import coarsest, self_teaching
from tests.fakes import completion
from trd_ray.assembly import Roles
from trd_ray.choices import Divergence, DType, ScoreMethod, Support
from trd_ray.config import GeneratorConfig, MethodConfig, RunConfig, TeacherConfig, TrdConfig
from trd_ray.errors import LearnerLostError, WeightSyncError
from trd_ray.types import (
    Completion,
    FloatArray,
    IntArray,
    LearnerStep,
    Problem,
    Prompt,
    SyncReport,
    TeacherCompletion,
    TeacherContext,
    TeacherHidden,
    TopKTargets,
    TrainingBatch,
    TrajectorySource,
)

TEXT = "1+2=3"
LOGPROB = -0.5


@dataclass
class Agreeing:
    """Generator, teacher, learner and weight sync that all say the same; each number can be spoilt."""

    config: TrdConfig
    learner_off: float = 0.0
    prefill_off: float = 0.0
    fused_off: float = 0.0
    loss: float = 0.0
    same_checksum: bool = False
    forgets: bool = False
    """What is loaded are not the weights that were saved."""
    lost: bool = False
    push_fails: bool = False
    version: int = 0
    saved: int = -1

    async def token_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        return np.full(len(token_ids), LOGPROB + self.prefill_off, dtype=np.float32)

    async def generate(
        self, prompt_ids: IntArray, sampling: object, seed: int, *, top_k: int | None = None
    ) -> TeacherCompletion:
        assert top_k is not None
        return TeacherCompletion(completion=completion(TEXT), targets=self.targets(self.fused_off))

    def targets(self, off: float) -> TopKTargets:
        shape = (len(TEXT), self.config.method.num_targets)
        return TopKTargets(
            topk_ids=np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)),
            topk_logprobs=np.full(shape, LOGPROB + off, dtype=np.float16),
            token_logprobs=np.full(shape[0], LOGPROB + off, dtype=np.float32),
        )

    async def score(self, context_ids: IntArray, token_ids: IntArray) -> TeacherHidden | TopKTargets:
        if self.config.teacher.score.by_engine:
            return self.targets(0.0)
        return TeacherHidden(hidden=np.zeros((len(token_ids), 3), dtype=np.float32))

    async def push(self, policy_version: int) -> SyncReport:
        if self.push_fails:
            raise WeightSyncError("other weights arrived\n  remedy:   restart")
        checksum = "same" if self.same_checksum else f"weights {self.version}"
        return SyncReport(
            policy_version=policy_version, num_parameters=7, num_bytes=28, checksum=checksum, sync_s=0.1
        )

    async def learn(self, batch: TrainingBatch) -> LearnerStep:
        assert batch.learner_step == self.version + 1
        self.version = batch.learner_step
        return LearnerStep(
            learner_step=self.version, policy_version=self.version, loss=self.loss, grad_norm=1.0,
            learning_rate=0.1, num_loss_tokens=batch.num_loss_tokens, student_logprob_mean=None, learn_s=0.1,
        )  # fmt: skip

    async def probe_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        if self.lost:
            raise LearnerLostError("a learner rank is lost")
        off = self.learner_off + 0.01 * self.version
        return np.full(len(token_ids), LOGPROB + off, dtype=np.float32)

    async def save(self, folder: Path) -> None:
        folder.mkdir()
        self.saved = self.version

    async def load(self, folder: Path) -> int:
        assert folder.is_dir()
        self.version = self.saved
        if self.forgets:
            self.learner_off += 0.25
        return self.saved


def prompt(index: int) -> Prompt:
    problem = Problem(prompt_id=str(index), problem="1+2", answer="3")
    ids = np.asarray([1, 2], dtype=np.int32)
    return Prompt(problem=problem, epoch=0, sample_index=0, token_ids=ids, seed=index)


def config_of(method: MethodConfig | None = None, **teacher: object) -> TrdConfig:
    base = TrdConfig(method=method or MethodConfig())
    return replace(base, teacher=replace(base.teacher, **teacher))  # type: ignore[arg-type]


async def findings(
    tmp_path: Path, config: TrdConfig | None = None, rollout: Completion | None = None, **spoilt: object
) -> dict[str, Finding]:
    taught = self_teaching(config or config_of())
    parts = Agreeing(config=taught, **spoilt)  # type: ignore[arg-type]
    probe = Probe(
        config=taught,
        roles=Roles(generator=parts, teacher=parts, learner=parts, weight_sync=parts),  # type: ignore[arg-type]
        learner=parts,  # type: ignore[arg-type]
        prompts=[prompt(i) for i in range(3)],
        rollouts=[rollout or completion(TEXT, logprob=LOGPROB)] * 3,
        vocab_size=128,
        num_parameters=7,
        folder=tmp_path,
    )
    made = await make_checks(probe)
    assert [finding.check for finding in made] == list(PARITY_NAMES) == [name for name, _ in PARITY_CHECKS]
    assert list(tmp_path.iterdir()) == []  # the checkpoint is gone again
    return {finding.check: finding for finding in made}


def failed(made: dict[str, Finding]) -> list[str]:
    return [name for name, finding in made.items() if finding.outcome is Outcome.FAILED]


TOP_K = config_of(MethodConfig(support=Support.TOP_K, top_k=8), score=ScoreMethod.FUSED)


@pytest.mark.parametrize("config", [config_of(), TOP_K], ids=["hidden", "top_k"])
async def test_actors_that_agree_pass_everything(tmp_path: Path, config: TrdConfig):
    made = await findings(tmp_path, config)
    assert {f.outcome for f in made.values()} == {Outcome.PASSED}
    assert "mean 0 (limit 0.0001)" in made[LEARNER].measured


@pytest.mark.parametrize(
    ("spoilt", "expected"),
    [
        ({"learner_off": 0.01}, [LEARNER]),
        # The teacher's own prefill is the same function here.
        ({"prefill_off": 0.01}, [DECODING, FUSED]),
        ({"fused_off": 0.01}, [FUSED]),
        ({"loss": 1e-5}, [ZERO]),
        ({"same_checksum": True}, [PUSH]),
        ({"push_fails": True}, [PUSH]),
        ({"forgets": True}, [CHECKPOINT]),
        ({"lost": True}, [LEARNER, CHECKPOINT]),
    ],
)
async def test_each_check_can_fail_and_stops_no_other(
    tmp_path: Path, spoilt: dict[str, object], expected: list[str]
):
    made = await findings(tmp_path, **spoilt)
    assert failed(made) == expected
    assert all(made[name].remedy for name in expected)


async def test_fused_top_k_against_a_pass(tmp_path: Path):
    made = await findings(tmp_path, TOP_K, fused_off=0.1)
    assert failed(made) == [FUSED]
    assert "top 16" in made[FUSED].measured


async def test_a_sampled_padding_row(tmp_path: Path):
    odd = completion("1\u0100", logprob=LOGPROB)  # id 256 of 128
    assert PADDING_IDS in failed(await findings(tmp_path, rollout=odd))


async def test_no_room_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    made = await findings(tmp_path)
    assert failed(made) == [CHECKPOINT]
    assert "10 bytes free" in made[CHECKPOINT].measured


async def test_without_an_engine_of_the_teachers_nothing_is_fused(tmp_path: Path):
    method = MethodConfig(trajectory=TrajectorySource.ROLLOUT, teacher_context=TeacherContext.PROMPT)
    made = await findings(tmp_path, config_of(method))
    assert made[FUSED].outcome is Outcome.NOT_APPLICABLE
    assert failed(made) == []


def test_limits_are_those_of_the_coarsest_format():
    assert coarsest(TrdConfig()) is DType.FLOAT32
    assert coarsest(config_of(hidden_dtype=DType.BFLOAT16)) is DType.BFLOAT16


def test_the_run_in_which_the_student_teaches_itself():
    taught = self_teaching(replace(TrdConfig(), run=RunConfig(dir="x")))
    assert taught.method.divergence is Divergence.FORWARD_KL
    assert taught.teacher_model == taught.student.model
    assert taught.teacher_engine and taught.teacher_scorer
    assert taught.weight_sync.verify_every == 1
    # A teacher that scores by its engine holds the longest rollout and one token.
    scoring = self_teaching(
        replace(TOP_K, generator=GeneratorConfig(), teacher=TeacherConfig(score=ScoreMethod.FUSED))
    )
    assert scoring.teacher.engine.max_model_len == scoring.generator.engine.max_model_len + 1
    assert scoring.teacher.score is ScoreMethod.PREFILL and not scoring.teacher_scorer
