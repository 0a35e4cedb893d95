"""Every option of trd-ray: its default, its meaning, its range.

The tree of frozen dataclasses below is the only home of defaults. YAML files hold overrides only;
`trd_ray/config_loader.py` reads them. Each option is described once, under its field. A component
is given its own block, never the whole tree. Values that follow from others are properties.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from trd_ray.checks import (
    require,
    require_at_least,
    require_between,
    require_import_path,
    require_positive,
)
from trd_ray.choices import (
    Clip,
    Device,
    Divergence,
    DType,
    Estimator,
    Locator,
    Normalization,
    OnRefusal,
    OverStale,
    PlacementMode,
    PlacementStrategy,
    RefineGate,
    Renormalize,
    Reward,
    Schedule,
    ScoreMethod,
    Support,
    SyncBackend,
    Tail,
    TeacherWeights,
    TokenGate,
    TrackerKind,
)
from trd_ray.method import check_method, check_scoring, method_sentence
from trd_ray.placement_checks import check_placement
from trd_ray.secrets_mask import has_credentials, mask_text
from trd_ray.types import TeacherContext, TrajectorySource


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What runs, how long, and where its results go."""

    dir: str = "runs/default"
    """Run folder. A new run refuses a folder that already holds one; `--resume` continues it."""
    seed: int = 0
    """Seeds problem order, samplers and initialisation. 0 or more."""
    num_steps: int = 100
    """Optimizer steps. 1 or more."""
    eval_every: int = 0
    """Evaluate after every so many steps; 0 means only before the first and after the last."""
    checkpoint_every: int = 50
    """Checkpoint after every so many steps, and always after the last; 0 means only the last."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; older ones are deleted. 1 or more."""
    trackers: tuple[TrackerKind, ...] = (TrackerKind.TENSORBOARD,)
    """Where the numbers go beside the run folder's own files: any of `tensorboard`, `wandb`, `mlflow`,
    `trackio`; `[]` is none. The `tracking` section says how."""
    trace_steps: int = 200
    """Steps in `trace.json`, which shows in Perfetto what each actor did: the first so many after a start
    or a resume, and of later ones two in every hundred. The file ends at 256 MiB. 0 writes none."""

    def __post_init__(self) -> None:
        require(bool(self.dir.strip()), "run.dir", self.dir, "a folder path", "name a folder for the results")
        require_between("run.seed", self.seed, 0, 2**31 - 1)
        require_at_least("run.num_steps", self.num_steps, 1)
        require_at_least("run.eval_every", self.eval_every, 0)
        require_at_least("run.checkpoint_every", self.checkpoint_every, 0)
        require_at_least("run.keep_checkpoints", self.keep_checkpoints, 1)
        require_at_least("run.trace_steps", self.trace_steps, 0)


@dataclass(frozen=True, kw_only=True)
class TokenGateConfig:
    """A second divergence on some tokens."""

    kind: TokenGate = TokenGate.NONE
    threshold: float = 0.8
    """Teacher entropy, in nats, above which a token gets the second divergence. 0 or more."""
    coef: float = 1.0
    """Its weight. Above 0."""
    top_k: int = 16
    """Its forward KL is over so many most likely tokens of the teacher, whose distribution is
    rescaled to sum to 1 over them. 1 or more."""

    def __post_init__(self) -> None:
        require_at_least("method.gate.threshold", self.threshold, 0.0)
        require_positive("method.gate.coef", self.coef)
        require_at_least("method.gate.top_k", self.top_k, 1)


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """A policy-gradient term on whether rollouts are right."""

    kind: Reward = Reward.NONE
    coef: float = 1.0
    """Weight beside the divergence. Above 0."""
    clip: float = 0.2
    """The ratio of new to old probability counts in [1 - clip, 1 + clip] only. Above 0."""

    def __post_init__(self) -> None:
        require_positive("method.reward.coef", self.coef)
        require_positive("method.reward.clip", self.clip)


@dataclass(frozen=True, kw_only=True)
class RefineGateConfig:
    """Which refinements are trained on, and what else if not."""

    kind: RefineGate = RefineGate.ALL
    min_support: float = 1.0
    """For `min_support`: largest fall of the mean student logprob from rollout to refinement, in
    nats a token. 0 or more."""
    function: str = ""
    """For `custom`: `package.module:function`, which is given a `trd_ray.refine_gate.Candidate` and says
    whether it is trained on. The module is imported, so it runs."""
    on_refusal: OnRefusal = OnRefusal.NOTHING
    """What is trained on in place of a refused refinement: `nothing` or the `rollout`."""

    def __post_init__(self) -> None:
        require_at_least("method.refine_gate.min_support", self.min_support, 0.0)
        require_import_path(
            "method.refine_gate.function", self.function, needed=self.kind is RefineGate.CUSTOM
        )


@dataclass(frozen=True, kw_only=True)
class SpliceConfig:
    """Where a rollout stops being good."""

    locator: Locator = Locator.GRADER
    threshold: float = 0.05
    """For `teacher_probability`: a token below it is the first bad one. In (0, 1)."""

    def __post_init__(self) -> None:
        require_between("method.splice.threshold", self.threshold, 1e-9, 1.0 - 1e-9)


@dataclass(frozen=True, kw_only=True)
class SpeculativeConfig:
    """Speculative distillation (SKD): the student drafts, the teacher verifies."""

    block_tokens: int = 5
    """Tokens drafted at a time. 1 or more."""
    top_k: int = 25
    """A drafted token stays if it is among so many most likely ones of the teacher. 1 or more."""
    temperature: float = 0.2
    """Of the teacher's sample in place of one that does not stay. 0 means greedy."""

    def __post_init__(self) -> None:
        require_at_least("method.speculative.block_tokens", self.block_tokens, 1)
        require_at_least("method.speculative.top_k", self.top_k, 1)
        require_at_least("method.speculative.temperature", self.temperature, 0.0)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """One point of the algorithm matrix. The files in configs/method/ name the points."""

    trajectory: TrajectorySource = TrajectorySource.REFINED
    """Tokens that are trained on: the student's `rollout`, the teacher's rewrite of it (`refined`),
    its good beginning and a new end (`spliced`), a draft that the teacher verifies
    (`speculative`), the `teacher`'s own answer, or the `reference` solution."""
    teacher_weights: TeacherWeights = TeacherWeights.EXTERNAL
    """`external` (OPD: another, better model), `initial` (OPSD: the student's first weights), `ema`
    (their moving average) or `periodic` (renewed from time to time)."""
    ema_decay: float = 0.99
    """For `ema`: teacher = decay x teacher + (1 - decay) x student after each step. In [0, 1]."""
    periodic_every: int = 50
    """For `periodic`: steps between renewals. 1 or more."""
    privileged: bool = False
    """Show the teacher the reference solution y* (needs a `solution` column)."""
    teacher_context: TeacherContext = TeacherContext.REFINE
    """Tokens before the trajectory when the teacher scores: `prompt` as the student sees it,
    `privileged` with y*, or `refine`, the prompt that the rewrite was made from."""
    divergence: Divergence = Divergence.FORWARD_KL
    """`forward_kl` = KL(teacher || student), `reverse_kl` = KL(student || teacher), `jsd` between
    them, `nll` = -log student(token), `custom`, or `none`."""
    divergence_function: str = ""
    """For `custom`: `package.module:function`, from log-probabilities of teacher and student [N, V] to
    values [N]. The module is imported, so it runs."""
    beta: float = 0.5
    """For `jsd`: weight of the teacher. 0 gives forward and 1 gives reverse KL. In [0, 1]."""
    support: Support = Support.FULL
    """Entries that it sums over: the `full` vocabulary, the teacher's `top_k`, or the one `sampled`."""
    top_k: int = 64
    """For support `top_k`. 1 or more."""
    renormalize: Renormalize = Renormalize.TEACHER
    """For support `top_k` and tail `drop`: which distributions are rescaled to sum to 1 over it."""
    tail: Tail = Tail.DROP
    """For support `top_k`: `drop` what lies outside, or gather it in one `bucket`."""
    estimator: Estimator = Estimator.K1
    """For support `sampled` and `reverse_kl`."""
    ratio_clip: float = 0.2
    """For estimator `policy_gradient`: PPO's clip of the ratio of new to old probability. Above 0."""
    clip: Clip = Clip.NONE
    """Bound each `token`'s divergence from above, or each vocabulary `entry`'s part of it."""
    clip_max: float = 0.05
    """The bound, in nats. Above 0."""
    normalization: Normalization = Normalization.TOKEN
    """`token`: mean over all tokens of the step; `trajectory`: mean over trajectories of their means."""
    gate: TokenGateConfig = field(default_factory=TokenGateConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    refine_gate: RefineGateConfig = field(default_factory=RefineGateConfig)
    splice: SpliceConfig = field(default_factory=SpliceConfig)
    speculative: SpeculativeConfig = field(default_factory=SpeculativeConfig)

    def __post_init__(self) -> None:
        require_between("method.ema_decay", self.ema_decay, 0.0, 1.0)
        require_at_least("method.periodic_every", self.periodic_every, 1)
        require_import_path(
            "method.divergence_function",
            self.divergence_function,
            needed=self.divergence is Divergence.CUSTOM,
        )
        require_between("method.beta", self.beta, 0.0, 1.0)
        require_at_least("method.top_k", self.top_k, 1)
        require_positive("method.ratio_clip", self.ratio_clip)
        require_positive("method.clip_max", self.clip_max)
        check_method(self)

    @property
    def makes_rollout(self) -> bool:
        """The student answers before anything else."""
        return self.trajectory in (
            TrajectorySource.ROLLOUT,
            TrajectorySource.REFINED,
            TrajectorySource.SPLICED,
        )

    @property
    def refines(self) -> bool:
        """The teacher is shown the rollout."""
        return self.trajectory in (TrajectorySource.REFINED, TrajectorySource.SPLICED)

    @property
    def teacher_generates(self) -> bool:
        """The teacher makes tokens."""
        return self.refines or self.trajectory in (TrajectorySource.SPECULATIVE, TrajectorySource.TEACHER)

    @property
    def scores(self) -> bool:
        """The loss needs the teacher's distributions."""
        return self.divergence not in (Divergence.NLL, Divergence.NONE)

    @property
    def teacher_moves(self) -> bool:
        """The teacher's weights change during the run."""
        return self.teacher_weights in (TeacherWeights.EMA, TeacherWeights.PERIODIC)

    @property
    def num_targets(self) -> int:
        """Entries of `TopKTargets` that the divergence needs of vLLM; 0: the token's own alone."""
        return self.top_k if self.support is Support.TOP_K else 0

    @property
    def refused_context(self) -> TeacherContext:
        """Context of a rollout that is trained on in place of a refused refinement."""
        return TeacherContext.PRIVILEGED if self.privileged else TeacherContext.PROMPT

    def sentence(self) -> str:
        """The method in one sentence, for people."""
        return method_sentence(self)


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Names of the columns in the data files."""

    problem: str = "problem"
    """Column with the problem text."""
    answer: str = "answer"
    """Column with the final answer."""
    solution: str = "solution"
    """Column with the reference solution; needed only if `method.privileged`."""
    id: str = "id"
    """Column with a stable id; where it is missing, the row number serves."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Problems to train and evaluate on."""

    task: str = "arithmetic"
    """Prompts and grader: `arithmetic`, `math`, or your own as `package.module:Class`, which is imported."""
    train: str = "testbed:train"
    """JSON Lines (also .gz) or Parquet, as a path or fsspec URL; `testbed:train`, endless; or
    `sample:gsm8k_train`, a few hundred rows that come with the math task."""
    eval: str = "testbed:held_out"
    """Held-out problems, likewise (`testbed:held_out`, `sample:gsm8k_test`). Empty means no evaluation."""
    eval_problems: int = 200
    """First so many problems of `data.eval` are evaluated. 1 or more."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)

    def __post_init__(self) -> None:
        require_at_least("data.eval_problems", self.eval_problems, 1)
        require(
            bool(self.train),
            "data.train",
            self.train,
            "a file, URL or testbed:train",
            "name the training data",
        )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How an engine samples."""

    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    """In (0, 1]; 1 means off."""
    top_k: int = 0
    """0 means off."""
    max_tokens: int = 64
    """Output budget. 1 or more."""

    def __post_init__(self) -> None:
        require_at_least("sampling.temperature", self.temperature, 0.0)
        require_between("sampling.top_p", self.top_p, 1e-6, 1.0)
        require_at_least("sampling.top_k", self.top_k, 0)
        require_at_least("sampling.max_tokens", self.max_tokens, 1)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How the student is evaluated."""

    num_samples: int = 8
    """Samples a problem: k of avg@k and pass@k. 1 or more."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        require_at_least("eval.num_samples", self.num_samples, 1)


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """How much is made in a step, and what may be in flight."""

    prompts_per_step: int = 64
    """Problems in an optimizer step. 1 or more."""
    rollouts_per_prompt: int = 1
    """Rollouts of each. 1 or more; their product is the trajectories of a step."""
    max_staleness: int = 0
    """Steps by which a rollout may lag behind the learner, and by which generation may run ahead of it.
    0 is strictly on-policy: generators wait while the learner learns. 1 lets them overlap."""
    over_stale: OverStale = OverStale.DROP
    """What becomes of a trajectory that is older than that, because it took long: `drop` it with its
    reason, `use` it, or `refresh` it (its prompt is answered anew)."""
    max_in_flight: int = 0
    """Prompts that are being answered, refined or scored at once; 0 sets no other bound than
    `(max_staleness + 1) * prompts_per_step * rollouts_per_prompt`."""
    log_targets: bool = True
    """Keep what the learner trains on in `buffer_log`, teacher's distributions included: with it
    `--replay` trains again without generators and teachers, and a learner that died is brought back to
    its step. Costs disk: the dry run says how much a step."""
    log_url: str = ""
    """Where that log is kept, of one run: a folder or any fsspec URL; each trial of a sweep has a folder of
    its own below it. Empty: `buffer_log` in the run folder."""
    stage_barrier: bool = True
    """Begin a stage only when all trajectories of the step have ended the one before. Right where
    roles share their cores or GPUs; false lets each trajectory go on by itself."""
    max_rejected_share: float = 0.5
    """A step in which a larger share of trajectories is rejected ends the run. In [0, 1]."""

    def __post_init__(self) -> None:
        require_at_least("pipeline.prompts_per_step", self.prompts_per_step, 1)
        require_at_least("pipeline.rollouts_per_prompt", self.rollouts_per_prompt, 1)
        require_at_least("pipeline.max_staleness", self.max_staleness, 0)
        require_at_least("pipeline.max_in_flight", self.max_in_flight, 0)
        require(
            not (self.stage_barrier and self.max_staleness),
            "pipeline.stage_barrier", self.stage_barrier,
            "false where max_staleness is above 0: stages of several steps run at once",
            "set pipeline.stage_barrier=false",
        )  # fmt: skip
        require(
            not (self.stage_barrier and self.max_in_flight),
            "pipeline.max_in_flight", self.max_in_flight,
            "0 with a stage barrier, which waits for all trajectories of a step",
            "set pipeline.stage_barrier=false",
        )  # fmt: skip
        require_between("pipeline.max_rejected_share", self.max_rejected_share, 0.0, 1.0)

    @property
    def trajectories_per_step(self) -> int:
        return self.prompts_per_step * self.rollouts_per_prompt


@dataclass(frozen=True, kw_only=True)
class ResourceConfig:
    """What one actor computes with. Fractions share a core among actors."""

    cpus: float = 0.5
    """Cores. Above 0."""
    gpus: float = 0.0
    """GPUs that it computes on, whole ones; where roles take turns on them (`placement.mode`) Ray is
    asked for the fraction that follows. 0 or more."""
    memory_gib: float = 2.0
    """Memory in GiB. Above 0."""

    def __post_init__(self) -> None:
        require_positive("resources.cpus", self.cpus)
        require_at_least("resources.gpus", self.gpus, 0.0)
        require_positive("resources.memory_gib", self.memory_gib)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """One vLLM engine."""

    device: Device = Device.CPU
    dtype: DType = DType.FLOAT32
    """Weights and activations of the engine."""
    threads: int = 2
    """OpenMP threads on a CPU. 1 or more."""
    max_model_len: int = 512
    """Prompt and output together, in tokens. 2 or more."""
    max_num_seqs: int = 256
    """Requests computed at once. 1 or more."""
    max_num_batched_tokens: int = 0
    """Tokens computed at once; 0 leaves it to vLLM."""
    kv_cache_gib: float = 1.0
    """KV cache on a CPU, in GiB. Above 0."""
    gpu_memory_utilization: float = 0.85
    """Share of a GPU's memory that the engine takes. In (0, 1]."""
    tensor_parallel_size: int = 1
    """GPUs that share one model. 1 or more."""
    enforce_eager: bool = True
    """No compilation: starts in seconds. False pays off for long runs of large models."""
    prefix_caching: bool = True
    """Keep the KV cache of shared prompt beginnings; it is reset after each push of weights."""

    def __post_init__(self) -> None:
        require_at_least("engine.threads", self.threads, 1)
        require_at_least("engine.max_model_len", self.max_model_len, 2)
        require_at_least("engine.max_num_seqs", self.max_num_seqs, 1)
        require_at_least("engine.max_num_batched_tokens", self.max_num_batched_tokens, 0)
        require_positive("engine.kv_cache_gib", self.kv_cache_gib)
        require_between("engine.gpu_memory_utilization", self.gpu_memory_utilization, 0.01, 1.0)
        require_at_least("engine.tensor_parallel_size", self.tensor_parallel_size, 1)


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The model that is trained."""

    model: str = "testbed:student"
    """Model folder in Hugging Face layout, `owner/name` of a model on the hub, or `testbed:student`."""
    enable_thinking: bool = False
    """Passed to the chat template of the student's prompts."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """The group of student generators."""

    num_actors: int = 1
    """Generators, each with its own engine. 1 or more."""
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    """What each asks for."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How rollouts are sampled."""

    def __post_init__(self) -> None:
        require_at_least("generator.num_actors", self.num_actors, 1)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The group of teachers, which refine (vLLM) and score (transformers)."""

    model: str = "testbed:teacher"
    """Model folder in Hugging Face layout, `owner/name` on the hub, or `testbed:teacher`. Used if
    `method.teacher_weights` is `external`."""
    enable_thinking: bool = False
    """Passed to the chat template of the teacher's prompts."""
    num_actors: int = 1
    """Teachers. 1 or more."""
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    """What each asks for."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    """How refinements are sampled."""
    score: ScoreMethod = ScoreMethod.HIDDEN
    """`hidden` states (exact, any divergence), vLLM's top-k logprobs (`fused` with the generation of
    the trajectory, or by `prefill`), or by the `learner` itself."""
    score_dtype: DType = DType.FLOAT32
    """Weights and activations of the model that scores."""
    hidden_dtype: DType = DType.FLOAT32
    """Format in which hidden states travel. `bfloat16` halves the bytes and loses nothing if
    `score_dtype` is `bfloat16` too."""
    score_batch_tokens: int = 8192
    """Tokens, padding included, that are scored at once. 1 or more."""

    def __post_init__(self) -> None:
        require_at_least("teacher.num_actors", self.num_actors, 1)
        require_at_least("teacher.score_batch_tokens", self.score_batch_tokens, 1)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = 1e-3
    """Peak. Above 0."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.005
    max_grad_norm: float = 1.0
    """Global L2 norm at which gradients are clipped. Above 0."""
    schedule: Schedule = Schedule.COSINE
    """After warm-up: `cosine` down to `final_ratio`, or `constant`."""
    warmup_ratio: float = 0.1
    """Share of `run.num_steps` in which the rate rises linearly. In [0, 1]."""
    final_ratio: float = 0.1
    """Last learning rate of `cosine`, as a share of the peak. In [0, 1]."""

    def __post_init__(self) -> None:
        require_positive("learner.optimizer.learning_rate", self.learning_rate)
        require_between("learner.optimizer.beta1", self.beta1, 0.0, 1.0 - 1e-9)
        require_between("learner.optimizer.beta2", self.beta2, 0.0, 1.0 - 1e-9)
        require_positive("learner.optimizer.eps", self.eps)
        require_at_least("learner.optimizer.weight_decay", self.weight_decay, 0.0)
        require_positive("learner.optimizer.max_grad_norm", self.max_grad_norm)
        require_between("learner.optimizer.warmup_ratio", self.warmup_ratio, 0.0, 1.0)
        require_between("learner.optimizer.final_ratio", self.final_ratio, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in place of training all weights."""

    rank: int = 0
    """0 trains all weights. 0 or more."""
    alpha: int = 128
    """The adapters' product is scaled by alpha / rank. 1 or more."""
    dropout: float = 0.0
    """Of the adapters' input. In [0, 1)."""
    target: str = "all-linear"
    """`all-linear` (all but the output head), or names of modules, separated by commas."""

    def __post_init__(self) -> None:
        require_at_least("learner.lora.rank", self.rank, 0)
        require_at_least("learner.lora.alpha", self.alpha, 1)
        require_between("learner.lora.dropout", self.dropout, 0.0, 1.0 - 1e-9)
        require(bool(self.target.strip()), "learner.lora.target", self.target, "all-linear or module names",
                "set learner.lora.target=all-linear")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """The group of DeepSpeed ranks that trains the student."""

    num_ranks: int = 1
    """Data-parallel ranks, one actor each. 1 or more."""
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    """What each rank asks for."""
    device: Device = Device.CPU
    dtype: DType = DType.FLOAT32
    """Weights in forward and backward. Optimizer states are always float32."""
    threads: int = 2
    """OpenMP threads a rank on a CPU. 1 or more."""
    zero_stage: int = 1
    """ZeRO: what is sharded over ranks. 1 optimizer states, 2 also gradients, 3 also weights."""
    micro_batch_tokens: int = 8192
    """Tokens, padding included, in one forward and backward of a rank. 1 or more."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    kl_chunk_size: int = 2048
    """Tokens whose logits are held at once. 1 or more."""
    record_token_values: bool = True
    """Keep each trained token's divergence and student logprob in `trajectories/`, as float16: 4 bytes a
    token before compression. The report colours tokens by them."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        require_at_least("learner.num_ranks", self.num_ranks, 1)
        require_at_least("learner.threads", self.threads, 1)
        require_between("learner.zero_stage", self.zero_stage, 1, 3)
        require_at_least("learner.micro_batch_tokens", self.micro_batch_tokens, 1)
        require_at_least("learner.kl_chunk_size", self.kl_chunk_size, 1)


@dataclass(frozen=True, kw_only=True)
class WeightSyncConfig:
    """How weights go from the learner to the generators (and to teachers whose weights move)."""

    backend: SyncBackend = SyncBackend.CPU
    host: str = "auto"
    """The one address on which the learner's first rank meets engines and other ranks. `auto`: loopback
    while all nodes of the cluster have the same address, else that of this rank's node, also after it
    was started anew on another. An address is taken as it is, and binds the first rank to its node."""
    bucket_mib: int = 8
    """Weights sent at once, in MiB; while one bucket travels the next is filled and the last is loaded.
    8 stays in a CPU's cache. 1 or more."""
    shared_memory: bool = True
    """With the backend `cpu`, where learner and engines are on one machine: the weights pass through memory
    that all of them map, one more copy of the weights on the machine. `false`: through sockets, as between
    machines."""
    verify_every: int = 20
    """Read the engines' weights back and compare them with the learner's after the first push to them and
    each so many-th from there: 1 each, 0 never. What travels with the backend `cpu` is compared by checksum
    at every push; this finds an engine that loads it wrongly, and costs a CPU engine a forward pass."""

    def __post_init__(self) -> None:
        require_at_least("weight_sync.bucket_mib", self.bucket_mib, 1)
        require_at_least("weight_sync.verify_every", self.verify_every, 0)

    @property
    def finds_host(self) -> bool:
        """The address is looked for; none is given."""
        return self.host in ("auto", "")


@dataclass(frozen=True, kw_only=True)
class PlacementConfig:
    """Where the actors are."""

    mode: PlacementMode = PlacementMode.DISAGGREGATED
    """`disaggregated`: each actor has its own cores and GPUs. `colocated`: generators, teachers and
    learner ranks share the same ones and take turns by stage; each role then takes as many devices as
    the others. Needs `pipeline.max_staleness=0` and `pipeline.stage_barrier=true`."""
    strategy: PlacementStrategy = PlacementStrategy.PACK
    """Over several nodes: `pack` on as few as possible, or `spread`. An engine over several GPUs is on
    one node either way."""
    gpus_per_node: int = 8
    """GPUs of a node: bounds a tensor-parallel engine, and is what the drawn plan counts with. 1 or more."""
    device_memory_gib: float = 0.0
    """Memory of one GPU, in GiB, which the memory plan compares with; 0 is unknown. 0 or more."""

    def __post_init__(self) -> None:
        require_at_least("placement.gpus_per_node", self.gpus_per_node, 1)
        require_at_least("placement.device_memory_gib", self.device_memory_gib, 0.0)


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """The Ray cluster."""

    address: str = "local"
    """`local` starts a private one on this machine; `auto` joins the one that runs here; or the address of
    another, `host:port` of its head."""
    dashboard: bool = False
    """Serve Ray's dashboard of a private cluster on 127.0.0.1."""
    dashboard_port: int = 8265
    """Its port."""
    num_cpus: int = 0
    """Cores of a private cluster; 0 takes all."""
    actor_logs: bool = False
    """Show what actors print on the console of the run, and no live progress line, which it would tear.
    They are kept in the session's logs either way."""
    object_store_gib: float = 1.0
    """Shared memory of a private cluster, in GiB. At least 0.1."""

    def __post_init__(self) -> None:
        require(
            self.address in ("local", "auto") or self.head is not None,
            "ray.address", repr(self.address), "local, auto, or host:port of the cluster's head",
            "write for example ray.address=10.0.0.1:6379",
        )  # fmt: skip
        require_between("ray.dashboard_port", self.dashboard_port, 1, 65535)
        require_at_least("ray.num_cpus", self.num_cpus, 0)
        require_at_least("ray.object_store_gib", self.object_store_gib, 0.1)

    @property
    def head(self) -> tuple[str, int] | None:
        """Host and port, where the address names them."""
        host, _, port = self.address.removeprefix("ray://").rpartition(":")
        number = int(port) if port.isascii() and port.isdigit() else 0
        return (host.strip("[]"), number) if host and 0 < number <= 65535 else None


@dataclass(frozen=True, kw_only=True)
class TimeoutConfig:
    """Longest waits, in seconds. Who exceeds one is named, and replaced as far as `faults` allows; else the
    run ends."""

    placement_s: float = 60.0
    """Until all actors have their resources."""
    start_s: float = 600.0
    """Until an actor has loaded its model."""
    generate_s: float = 600.0
    """One rollout, refinement or score."""
    learn_s: float = 1800.0
    """One optimizer step, or one checkpoint."""
    sync_s: float = 300.0
    """Each wait of a push of weights, which has four: to begin, to travel, to be loaded, to go on."""

    def __post_init__(self) -> None:
        for name in ("placement_s", "start_s", "generate_s", "learn_s", "sync_s"):
            require_positive(f"timeouts.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class FaultConfig:
    """What is done about actors that die, hang or answer nonsense."""

    max_attempts: int = 3
    """Times that one request is tried, each time at the actor with the least to do, before its error
    ends the run. 1 or more."""
    max_restarts: int = 3
    """Times that the actors of one role are started anew in a run before the next death ends it, with a
    checkpoint. 0 or more."""
    max_nonsense: int = 3
    """Answers in a row without sense (not finite, too long, unknown tokens) after which an actor is
    started anew. 1 or more."""
    heartbeat_s: float = 10.0
    """Seconds between two questions whether an actor is well. Above 0."""
    heartbeat_timeout_s: float = 60.0
    """Seconds without an answer to one after which the actor counts as hung. Above 0."""

    def __post_init__(self) -> None:
        require_at_least("faults.max_attempts", self.max_attempts, 1)
        require_at_least("faults.max_restarts", self.max_restarts, 0)
        require_at_least("faults.max_nonsense", self.max_nonsense, 1)
        require_positive("faults.heartbeat_s", self.heartbeat_s)
        require_positive("faults.heartbeat_timeout_s", self.heartbeat_timeout_s)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """How the run appears in W&B, MLflow and trackio (`run.trackers`)."""

    project: str = "trd-ray"
    """Project there; MLflow calls it an experiment. Letters, digits, `-` and `_`."""
    name: str = ""
    """Name of the run there. Empty: that of the run folder."""
    tags: tuple[str, ...] = ()
    """Words to find the run by; trackio, which has no tags, shows them in the configuration."""
    offline: bool = False
    """Send nothing over the network: W&B writes files for `wandb sync`, MLflow a SQLite file, both in the
    run folder."""
    mlflow_uri: str = ""
    """MLflow's tracking server or database. Empty: `MLFLOW_TRACKING_URI`, or `mlflow.db` in the run folder
    where that is not set either. Credentials belong into `MLFLOW_TRACKING_USERNAME` and `_PASSWORD`."""

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", self.project) is not None,
            "tracking.project", self.project, "1 to 100 letters, digits, `-` and `_`",
            "choose a plain name: it becomes part of file names and addresses",
        )  # fmt: skip
        require(
            len(self.name) <= 100 and self.name.isprintable(),
            "tracking.name", self.name, "at most 100 printable characters", "choose a shorter name",
        )  # fmt: skip
        require(
            all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._:/-]{0,63}", tag) for tag in self.tags),
            "tracking.tags", list(self.tags), "words of at most 64 letters, digits, spaces and `._:/-`",
            "mend the tags",
        )  # fmt: skip
        require(
            not has_credentials(self.mlflow_uri),
            "tracking.mlflow_uri", mask_text(self.mlflow_uri), "an address without credentials",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment instead",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrdConfig:
    """The whole tree."""

    run: RunConfig = field(default_factory=RunConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    weight_sync: WeightSyncConfig = field(default_factory=WeightSyncConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    timeouts: TimeoutConfig = field(default_factory=TimeoutConfig)
    faults: FaultConfig = field(default_factory=FaultConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        for name, engine, budget in (
            ("generator", self.generator.engine, self.generator.sampling.max_tokens),
            ("teacher", self.teacher.engine, self.teacher.sampling.max_tokens),
            ("eval", self.generator.engine, self.eval.sampling.max_tokens),
        ):
            require(
                budget < engine.max_model_len,
                f"{name}.sampling.max_tokens", budget,
                f"less than the engine's max_model_len ({engine.max_model_len}): prompt and output",
                "raise engine.max_model_len or lower max_tokens",
            )  # fmt: skip
        self._check_gpus()
        check_scoring(self)
        check_placement(self)
        on_cuda = Device.CUDA in (self.generator.engine.device, self.learner.device)
        # NCCL refuses a group with two ranks on one GPU, which colocated roles would be.
        by_nccl = on_cuda and not self.colocated
        require(
            (self.weight_sync.backend is SyncBackend.NCCL) == by_nccl,
            "weight_sync.backend", self.weight_sync.backend.value,
            "nccl if generators and learner are on GPUs of their own; cpu (through host memory) if both "
            "are on cpu or placement.mode is colocated",
            f"set weight_sync.backend={'nccl' if by_nccl else 'cpu'}, or change the devices",
        )  # fmt: skip
        require(
            self.generator.engine.device is self.learner.device,
            "learner.device", self.learner.device.value,
            f"the generators' device ({self.generator.engine.device.value})",
            "put both on the same kind of device",
        )  # fmt: skip

    def _check_gpus(self) -> None:
        """An actor that asks Ray for no GPU would see all of them, and take the first."""
        wanted = (
            ("generator", self.generator.engine.device, self.generator.engine.tensor_parallel_size,
             self.generator.resources),
            ("teacher", self.teacher.engine.device, self.teacher.engine.tensor_parallel_size,
             self.teacher.resources),
            ("learner", self.learner.device, 1, self.learner.resources),
        )  # fmt: skip
        for role, device, num_gpus, resources in wanted:
            needed = num_gpus if device is Device.CUDA else 0
            require(
                resources.gpus == needed,
                f"{role}.resources.gpus", resources.gpus,
                f"{needed}: one for each GPU that the actor computes on (device {device.value})",
                f"set {role}.resources.gpus={needed}",
            )  # fmt: skip

    @property
    def colocated(self) -> bool:
        """Roles take turns on the same devices."""
        return self.placement.mode is PlacementMode.COLOCATED

    @property
    def teacher_model(self) -> str:
        """The folder whose weights the teacher has at step 0; the student's where there is no teacher."""
        needed = self.method.scores or self.teacher_group
        if needed and self.method.teacher_weights is TeacherWeights.EXTERNAL:
            return self.teacher.model
        return self.student.model

    @property
    def max_student_prompt(self) -> int:
        """The generators' context less the largest output budget of a rollout, in tokens."""
        most_output = max(self.generator.sampling.max_tokens, self.eval.sampling.max_tokens)
        return self.generator.engine.max_model_len - most_output

    @property
    def max_trajectory_tokens(self) -> int:
        """Output budget of the role that makes the trajectory; a reference solution is as long as it is."""
        by_teacher = self.method.refines or self.method.trajectory is TrajectorySource.TEACHER
        return (self.teacher if by_teacher else self.generator).sampling.max_tokens

    @property
    def needs_reference(self) -> bool:
        """Every problem must have a reference solution."""
        return self.method.privileged or self.method.trajectory is TrajectorySource.REFERENCE

    @property
    def teacher_engine(self) -> bool:
        """Teachers have a vLLM engine."""
        locates = (
            self.method.trajectory is TrajectorySource.SPLICED
            and self.method.splice.locator is Locator.TEACHER_PROBABILITY
        )
        by_engine = self.method.scores and self.teacher.score.by_engine
        return self.method.teacher_generates or locates or by_engine

    @property
    def pushes_teacher(self) -> bool:
        """The teachers' engines follow weights that the learner holds."""
        return self.teacher_engine and self.method.teacher_moves

    @property
    def teacher_scorer(self) -> bool:
        """Teachers have a transformers model that scores."""
        return self.method.scores and self.teacher.score is ScoreMethod.HIDDEN

    @property
    def teacher_group(self) -> bool:
        """There are teachers at all."""
        return self.teacher_engine or self.teacher_scorer
