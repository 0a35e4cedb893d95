"""The values of options that are chosen from a list, each with its meaning."""

from __future__ import annotations

from enum import StrEnum


class Divergence(StrEnum):
    """What a token's loss compares."""

    FORWARD_KL = "forward_kl"
    """KL(teacher || student)."""
    REVERSE_KL = "reverse_kl"
    """KL(student || teacher)."""
    JSD = "jsd"
    """beta KL(teacher || M) + (1 - beta) KL(student || M), M = beta teacher + (1 - beta) student."""
    NLL = "nll"
    """-log student(token): no teacher distribution (SFT, sequence-level distillation)."""
    CUSTOM = "custom"
    """The user's own: `method.divergence_function`."""
    NONE = "none"
    """No such term: the reward term alone."""


class Support(StrEnum):
    """Vocabulary entries that a divergence sums over."""

    FULL = "full"
    TOP_K = "top_k"
    """The `top_k` most likely tokens of the teacher."""
    SAMPLED = "sampled"
    """The trajectory's own token alone: an estimate."""


class Renormalize(StrEnum):
    """Which distributions are rescaled to sum to 1 over a `top_k` support."""

    TEACHER = "teacher"
    BOTH = "both"
    NONE = "none"


class Tail(StrEnum):
    """What becomes of the probability outside a `top_k` support."""

    DROP = "drop"
    BUCKET = "bucket"
    """One more entry holds all of it, on both sides."""


class Estimator(StrEnum):
    """How a reverse KL is estimated from the trajectory's own token (support `sampled`)."""

    K1 = "k1"
    """log student - log teacher."""
    K3 = "k3"
    """teacher/student - 1 - log(teacher/student): never negative."""
    POLICY_GRADIENT = "policy_gradient"
    """log teacher - log student as the advantage of each token, with PPO's clipped ratio."""


class Clip(StrEnum):
    """What `clip_max` bounds from above."""

    NONE = "none"
    TOKEN = "token"
    """Each token's divergence."""
    ENTRY = "entry"
    """Each vocabulary entry's part of it, before the sum, which may then be negative."""


class TokenGate(StrEnum):
    """Which tokens get a second divergence."""

    NONE = "none"
    ENTROPY = "entropy"
    """Forward KL beside the divergence where the teacher's entropy is high (EOPD)."""


class Normalization(StrEnum):
    """What the sum over tokens is divided by."""

    TOKEN = "token"
    """All response tokens of the optimizer step: every token weighs the same."""
    TRAJECTORY = "trajectory"
    """Each trajectory by its own length, then by their number: every trajectory weighs the same."""


class Reward(StrEnum):
    """A term that learns from whether answers are right."""

    NONE = "none"
    GRPO = "grpo"
    """Advantages relative to the other rollouts of the same problem."""


class RefineGate(StrEnum):
    """Which refinements are trained on."""

    ALL = "all"
    FAILED_ONLY = "failed_only"
    """Those of wrong rollouts."""
    ACCEPT_CORRECT = "accept_correct"
    """Those that are right."""
    ACCEPT_NOT_WORSE = "accept_not_worse"
    """All but wrong refinements of right rollouts."""
    MIN_SUPPORT = "min_support"
    """Those whose mean student logprob is at most `min_support` nats below the rollout's."""
    CUSTOM = "custom"
    """The user's own: `method.refine_gate.function`."""


class OnRefusal(StrEnum):
    """What is trained on where the gate refuses a refinement."""

    NOTHING = "nothing"
    ROLLOUT = "rollout"
    """The rollout, scored under `privileged` if the method is privileged, else under `prompt`."""


class Locator(StrEnum):
    """How the end of a rollout's good beginning is found."""

    GRADER = "grader"
    """The first wrong step; needs a task that knows steps."""
    TEACHER_PROBABILITY = "teacher_probability"
    """The first token whose teacher probability, under the teacher's context, is too low."""
    FIRST_DIFFERENCE = "first_difference"
    """Where a rewrite of the whole rollout first differs from it."""


class TeacherWeights(StrEnum):
    """Whose weights the teacher has."""

    EXTERNAL = "external"
    """Another model, `teacher.model`."""
    INITIAL = "initial"
    """The student as it was before the first step."""
    EMA = "ema"
    """A moving average of the student."""
    PERIODIC = "periodic"
    """The student as it was after the last so many steps."""


class ScoreMethod(StrEnum):
    """How the teacher's distributions along a trajectory are computed."""

    HIDDEN = "hidden"
    """Final hidden states of a transformers model in the teacher group; exact full vocabulary."""
    FUSED = "fused"
    """vLLM's log-probabilities, taken while the teacher generates the trajectory: no second pass."""
    PREFILL = "prefill"
    """vLLM's log-probabilities, from a pass over the finished trajectory."""
    LEARNER = "learner"
    """The learner runs the teacher: a frozen copy, or its own model with the adapters off."""

    @property
    def by_engine(self) -> bool:
        """The teachers' vLLM engines give log-probabilities."""
        return self in (ScoreMethod.FUSED, ScoreMethod.PREFILL)


class DType(StrEnum):
    """Number format of weights and activations."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Device(StrEnum):
    """Where an engine or a learner rank computes."""

    CPU = "cpu"
    CUDA = "cuda"


class SyncBackend(StrEnum):
    """Transport of the weights from learner to generators, by its name in vLLM's registry."""

    CPU = "cpu"
    """Our own: shared memory or gloo; loaded layer by layer."""
    NCCL = "nccl"
    """vLLM's own, for GPUs."""


class Schedule(StrEnum):
    """Shape of the learning rate after warm-up."""

    COSINE = "cosine"
    CONSTANT = "constant"


class OverStale(StrEnum):
    """What becomes of a trajectory that is older than `pipeline.max_staleness`."""

    DROP = "drop"
    """Rejected with its reason; another prompt takes its place."""
    USE = "use"
    """Trained on all the same."""
    REFRESH = "refresh"
    """Its prompt is answered anew by the present student."""


class PlacementMode(StrEnum):
    """How roles share devices."""

    DISAGGREGATED = "disaggregated"
    """Each actor has cores and GPUs of its own, and all roles work at once."""
    COLOCATED = "colocated"
    """Generators, teachers and learner ranks sit on the same devices and take turns by stage."""


class PlacementStrategy(StrEnum):
    """How bundles are laid over nodes."""

    PACK = "pack"
    """On as few nodes as possible: pushes and gradients stay inside a node while they can."""
    SPREAD = "spread"
    """Over as many nodes as possible: for nodes that are short of host memory."""


class TrackerKind(StrEnum):
    """Where a run's numbers are recorded, beside `metrics.jsonl` and `eval.jsonl`."""

    TENSORBOARD = "tensorboard"
    """Event files in the run folder."""
    WANDB = "wandb"
    """Weights & Biases."""
    MLFLOW = "mlflow"
    """An MLflow server, or a SQLite file."""
    TRACKIO = "trackio"
    """A SQLite file that `trackio show` displays."""
