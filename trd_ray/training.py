"""One optimizer step's mathematics: the module whose output is the loss, and the schedule.

Every learner runs `DistillModule` and differs only in who sums the gradients. The loss of a step is

    L = 1 / num_loss_tokens * sum over all response tokens of all ranks and micro-batches of D_t

with D_t the per-token divergence of `trd_ray.losses`. The count is an argument, so that L does not
depend on how the samples were split.

Axis letters: B sequences, L padded length, N loss tokens, T response tokens, V vocabulary,
D student width, Dt teacher width.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trd_ray.batching import MicroBatchTensors
from trd_ray.choices import Divergence, DType, Schedule
from trd_ray.config import LearnerConfig, OptimizerConfig
from trd_ray.errors import RunFailedError, describe
from trd_ray.losses import chunked_token_divergence
from trd_ray.models import load_output_head, load_student, shared_vocab_size, torch_dtype
from trd_ray.types import FloatArray, IntArray


class DivergenceHead(nn.Module):
    """The student's output head together with the divergence that is computed through it.

    A module of its own, holding the head's weight as its own parameter (the same object as the
    model's, tied to the embedding or not), because ZeRO-3 gathers a parameter for the forward and
    backward of the module that holds it.
    """

    def __init__(
        self, weight: nn.Parameter, *, divergence: Divergence, chunk_size: int, vocab_size: int
    ) -> None:
        super().__init__()
        self.weight = weight
        self._divergence = divergence.value
        self._chunk_size = chunk_size
        self._vocab_size = vocab_size

    def forward(self, student_hidden: Tensor, teacher_hidden: Tensor, teacher_head: Tensor) -> Tensor:
        """[N, D], [N, Dt] and [V, Dt] -> [N] divergences in nats."""
        return chunked_token_divergence(
            student_hidden,
            self.weight,
            teacher_hidden,
            teacher_head,
            chunk_size=self._chunk_size,
            vocab_size=self._vocab_size,
            divergence=self._divergence,
        )


class DistillModule(nn.Module):
    """A causal language model whose forward gives its share of the loss."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        divergence: Divergence,
        chunk_size: int,
        vocab_size: int,
        activation_checkpointing: bool,
    ) -> None:
        """
        Args:
            model: the student, whose head is linear without bias.
            chunk_size: tokens whose logits are held at once.
            vocab_size: size of the shared tokenizer.
            activation_checkpointing: recompute activations in the backward pass.
        """
        super().__init__()
        self.model = model
        self.head = DivergenceHead(
            model.get_output_embeddings().weight,
            divergence=divergence,
            chunk_size=chunk_size,
            vocab_size=vocab_size,
        )
        if activation_checkpointing:
            # Under ZeRO-3 a weight has no elements between its uses, so that the shapes which the
            # check compares differ although the values do not.
            model.gradient_checkpointing_enable({"use_reentrant": False, "determinism_check": "none"})

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        teacher_hidden: Tensor,
        teacher_head: Tensor,
        num_loss_tokens: int,
    ) -> Tensor:
        """sum(divergence) / num_loss_tokens of one micro-batch, a scalar in nats.

        Args:
            input_ids: [B, L].
            attention_mask: [B, L].
            positions: [N] into [B * L].
            teacher_hidden: [N, Dt].
            teacher_head: [V or more, Dt].
            num_loss_tokens: response tokens of the whole step over all ranks.
        """
        output = self.model.get_decoder()(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        hidden = output.last_hidden_state.flatten(0, 1).index_select(0, positions)
        values: Tensor = self.head(hidden, teacher_hidden, teacher_head)
        return values.sum() / num_loss_tokens

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
    config: LearnerConfig, *, student: Path, teacher: Path, divergence: Divergence, dtype: DType
) -> tuple[DistillModule, Tensor]:
    """The student as a `DistillModule` in training mode, and the teacher's head [V, Dt]. On the CPU.

    Raises:
        ModelError: a folder cannot be used, or the tokenizers differ.
    """
    vocab_size = shared_vocab_size(student, teacher)
    module = DistillModule(
        load_student(student, torch_dtype(dtype)),
        divergence=divergence,
        chunk_size=config.kl_chunk_size,
        vocab_size=vocab_size,
        activation_checkpointing=config.activation_checkpointing,
    )
    return module.train(), load_output_head(teacher, torch_dtype(dtype))


def micro_batch_loss(
    module: nn.Module, tensors: MicroBatchTensors, *, teacher_head: Tensor, num_loss_tokens: int
) -> Tensor:
    """The loss of one micro-batch through a `DistillModule` or an engine around it."""
    loss: Tensor = module(
        tensors.input_ids,
        tensors.attention_mask,
        tensors.positions,
        tensors.teacher_hidden,
        teacher_head,
        num_loss_tokens,
    )
    return loss


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
