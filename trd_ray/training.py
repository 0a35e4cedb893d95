"""One optimizer step's mathematics: the module whose output is the loss, and the schedule.

Every learner runs `DistillModule` and differs only in who sums the gradients. The loss of a step is

    L = sum over all response tokens of all ranks and micro-batches of w_t D_t

with D_t the token's value in the objective of `trd_ray.losses` and w_t its weight, which
`trd_ray.collate` takes from the counts of the whole step, so that L does not depend on how the samples
were split.

Axis letters: N loss tokens, P prompt tokens, T response tokens, D student width, Dt teacher width.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trd_ray.choices import DType, Schedule, ScoreMethod
from trd_ray.collate import MicroBatchTensors, SequenceTensors
from trd_ray.config import LearnerConfig, MethodConfig, OptimizerConfig
from trd_ray.errors import RunFailedError, describe
from trd_ray.lora import Adapters, add_adapters
from trd_ray.losses.chunked import chunked_objective
from trd_ray.losses.objective import HiddenTeacher, LogitTransform, ObjectiveOutput, TeacherSide, TokenBatch
from trd_ray.losses.options import ObjectiveOptions
from trd_ray.models import load_student, logit_transform, shared_vocab_size, torch_dtype
from trd_ray.objective_options import TargetKind, objective_needs, objective_options
from trd_ray.teacher_copy import hidden_states
from trd_ray.token_tape import TokenTape
from trd_ray.token_values import TokenValues
from trd_ray.types import FloatArray, IntArray


class ObjectiveHead(nn.Module):
    """The student's output head together with the objective that is computed through it.

    A module of its own, holding the head's weight as its own parameter (the same object as the
    model's, tied to the embedding or not), because ZeRO-3 gathers a parameter for the forward and
    backward of the module that holds it.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        *,
        options: ObjectiveOptions,
        chunk_size: int,
        vocab_size: int,
        transform: LogitTransform,
    ) -> None:
        super().__init__()
        self.weight = weight
        self._options = options
        self._chunk_size = chunk_size
        self._vocab_size = vocab_size
        self._transform = transform

    def forward(
        self, student_hidden: Tensor, tokens: TokenBatch, teacher: TeacherSide | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, a scalar; each response token's value in it, and the student's logprob: [N], detached.

        A plain tuple: ZeRO-3 looks for tensors in nothing else, and would take the weights away too early.

        Args:
            student_hidden: [N, D].
            tokens: [N].
            teacher: the teacher's side; or its hidden states [N, D] alone where the teacher is the
                student's own frozen model: this head, which must not change then, is the teacher's too.
        """
        if isinstance(teacher, Tensor):
            teacher = HiddenTeacher(hidden=teacher, head=self.weight, transform=self._transform)
        output: ObjectiveOutput = chunked_objective(
            student_hidden,
            self.weight,
            teacher,
            tokens,
            options=self._options,
            chunk_size=self._chunk_size,
            vocab_size=self._vocab_size,
            transform=self._transform,
        )
        return output.loss, output.token_values, output.student_logprobs


class DistillModule(nn.Module):
    """A causal language model whose forward gives its share of the loss."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        options: ObjectiveOptions,
        chunk_size: int,
        vocab_size: int,
        activation_checkpointing: bool,
        transform: LogitTransform = LogitTransform(),  # noqa: B008 (frozen)
        adapters: Adapters | None = None,
        tape: TokenTape | None = None,
    ) -> None:
        """
        Args:
            model: the student, whose head is linear without bias.
            chunk_size: tokens whose logits are held at once.
            vocab_size: size of the shared tokenizer.
            activation_checkpointing: recompute activations in the backward pass.
            transform: what the model does with hidden states times head to get its logits.
            adapters: those of `model`, if it has any.
            tape: where each token's values are kept; None keeps none.
        """
        super().__init__()
        self.model = model
        self.adapters = adapters
        self._tape = tape
        self.head = ObjectiveHead(
            model.get_output_embeddings().weight,
            options=options,
            chunk_size=chunk_size,
            vocab_size=vocab_size,
            transform=transform,
        )
        if activation_checkpointing:
            # Under ZeRO-3 a weight has no elements between its uses, so that the shapes which the
            # check compares differ although the values do not.
            model.gradient_checkpointing_enable({"use_reentrant": False, "determinism_check": "none"})

    def forward(self, tensors: MicroBatchTensors, teacher: TeacherSide) -> tuple[Tensor, Tensor]:
        """One micro-batch's share of the loss, a scalar in nats, and of the samples' mean logprobs.

        The second is the sum over samples of the mean student logprob of their response tokens.

        Args:
            tensors: if it still holds a `teacher_input`, the model itself, without its adapters,
                computes the teacher's hidden states. In here, and not before, because ZeRO-3 expects
                all passes through its parameters within one forward of the module that it wraps.
            teacher: the teacher's side, if it is not computed here.
        """
        side: TeacherSide | Tensor = teacher
        if tensors.teacher_input is not None:
            side = self._initial_hidden(tensors.teacher_input)
        hidden = hidden_states(self.model, tensors.student)
        loss, token_values, student_logprobs = self.head(hidden, tensors.tokens, side)
        if self._tape is not None:
            self._tape.add(token_values, student_logprobs)
        return loss, (student_logprobs * tensors.share_of_sample).sum()

    def take_token_values(self) -> TokenValues | None:
        """Of all forwards since the last call, in their order; None if they are not recorded."""
        return None if self._tape is None else self._tape.take()

    @torch.no_grad()
    def _initial_hidden(self, sequences: SequenceTensors) -> Tensor:
        """[N, D] of the model as it was before it had adapters, without dropout."""
        assert self.adapters is not None  # the samples are of another kind without adapters
        was_training = self.model.training
        self.model.eval()
        with self.adapters.off():
            hidden = hidden_states(self.model, sequences)
        self.model.train(was_training)
        return hidden

    @torch.no_grad()
    def token_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        """[T] log-probability of each of `token_ids` [T] after `prompt_ids` [P], at temperature 1.

        Raises:
            ValueError: no prompt or no tokens.
        """
        if len(prompt_ids) == 0 or len(token_ids) == 0:
            raise ValueError(
                f"token_logprobs: got {len(prompt_ids)} prompt and {len(token_ids)} response tokens; "
                "expected at least one of each"
            )
        was_training = self.training
        self.eval()
        tokens = torch.from_numpy(np.concatenate([prompt_ids, token_ids]).astype(np.int64))
        tokens = tokens.to(self.model.device)
        output = self.model(input_ids=tokens[None, :-1], use_cache=False, logits_to_keep=len(token_ids))
        logprobs = torch.log_softmax(output.logits[0].float(), dim=-1)
        self.train(was_training)
        chosen = logprobs.gather(1, tokens[len(prompt_ids) :, None])[:, 0]
        return chosen.cpu().numpy()


def load_distill_module(
    config: LearnerConfig,
    *,
    method: MethodConfig,
    score: ScoreMethod,
    student: Path,
    teacher: Path,
    dtype: DType,
) -> DistillModule:
    """The student as a `DistillModule` in training mode, on the CPU.

    Args:
        teacher: folder whose tokenizer must be the student's, where the learner computes with the
            teacher's hidden states. Not read otherwise.

    Raises:
        ModelError: a folder cannot be used, or the tokenizers differ.
        ConfigError: the adapters do not fit the student.
    """
    exact = objective_needs(method, score).target in (TargetKind.HIDDEN, TargetKind.DEFERRED)
    vocab_size = shared_vocab_size(student, teacher if exact else student)
    model = load_student(student, torch_dtype(dtype))
    adapters = add_adapters(model, config.lora, base_model=student) if config.lora.rank > 0 else None
    module = DistillModule(
        model,
        options=objective_options(method),
        chunk_size=config.kl_chunk_size,
        vocab_size=vocab_size,
        activation_checkpointing=config.activation_checkpointing,
        transform=logit_transform(student),
        adapters=adapters,
        tape=TokenTape() if config.record_token_values else None,
    )
    return module.train()


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, object]]:
    """AdamW's two groups: matrices decay; norms and biases (tensors of one dimension) do not.

    Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2, decays all;
    leaving out one-dimensional tensors is the custom for transformers, whose scales have no
    reason to be small. Group by shapes before ZeRO-3 takes them away.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in trainable if parameter.ndim >= 2],
            "weight_decay": weight_decay,
        },
        {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; set the learning rate of each step with `learning_rate`."""
    return torch.optim.AdamW(
        parameter_groups(module, weight_decay=config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )


def learning_rate(learner_step: int, config: OptimizerConfig, *, num_steps: int) -> float:
    """Learning rate of one step.

    With w = round(warmup_ratio * num_steps) and x = (step - w) / (num_steps - w), capped at 1:

    step <= w:  peak * step / w
    cosine:     peak * (f + (1 - f) * (1 + cos(pi * x)) / 2), f = final_ratio, reached at num_steps
                (Loshchilov and Hutter 2017, "SGDR", equation 5, one period)
    constant:   peak

    Args:
        learner_step: from 1.

    Raises:
        ValueError: a step below 1.
    """
    if learner_step < 1:
        raise ValueError(f"learning_rate: got step {learner_step}; expected 1 or more")
    num_warmup = round(config.warmup_ratio * num_steps)
    if learner_step <= num_warmup:
        return config.learning_rate * learner_step / num_warmup
    if config.schedule is Schedule.CONSTANT:
        return config.learning_rate
    progress = min(1.0, (learner_step - num_warmup) / max(1, num_steps - num_warmup))
    cosine = (1.0 + math.cos(math.pi * progress)) / 2.0
    return config.learning_rate * (config.final_ratio + (1.0 - config.final_ratio) * cosine)


def require_next_step(learner_step: int, *, policy_version: int) -> None:
    """Raise ValueError unless a batch makes the step that follows the completed ones."""
    if learner_step != policy_version + 1:
        raise ValueError(
            f"learn: got a batch for learner step {learner_step}; expected {policy_version + 1}, because "
            f"{policy_version} steps are completed"
        )


def require_finite(value: float, name: str, *, learner_step: int, rank: int) -> None:
    """Raise RunFailedError if a loss or gradient norm is NaN or infinite. Call before the update.

    Args:
        rank: the rank that made the value.
    """
    if not math.isfinite(value):
        raise RunFailedError(
            describe(
                f"The {name} is not a finite number",
                where=f"learner step {learner_step}, rank {rank}",
                got=value,
                expected="a finite number; the weights were not changed by this step",
                remedy=(
                    "resume from the last checkpoint with a lower learner.optimizer.learning_rate, and "
                    "look at this step's trajectories: forward_kl is infinite where the teacher gives a "
                    "probability to a token that the student rules out"
                ),
            )
        )
