"""The learner in this process: plain torch, for a debugger and as the measure of the distributed one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from trd_ray.batching import collate
from trd_ray.choices import Divergence, DType
from trd_ray.config import LearnerConfig
from trd_ray.learner_checkpoint import HF_FOLDER, CheckpointHeader, begin, commit, read_header, save_hf
from trd_ray.training import (
    learning_rate,
    load_distill_module,
    make_optimizer,
    micro_batch_loss,
    require_finite,
    require_next_step,
)
from trd_ray.types import FloatArray, IntArray, LearnerStep, TrainingBatch

logger = logging.getLogger(__name__)

_STATE_FILE = "local_state.pt"


class LocalLearner:
    """Implements `Learner`. Computes the micro-batches of all ranks itself, in float32.

    Calls compute where they are awaited, not in a thread, so that a debugger stops in them.
    """

    def __init__(
        self,
        config: LearnerConfig,
        *,
        student: Path,
        teacher: Path,
        divergence: Divergence,
        num_steps: int,
        seed: int,
    ) -> None:
        """
        Args:
            num_steps: optimizer steps of the run, for the learning-rate schedule.

        Raises:
            ModelError: a model folder cannot be used, or the tokenizers differ.
        """
        if config.dtype is not DType.FLOAT32:
            logger.warning(
                "the learner in this process computes in float32, not in learner.dtype=%s", config.dtype
            )
        torch.manual_seed(seed)
        self.policy_version = 0
        self._config = config
        self._student = student
        self._num_steps = num_steps
        module, teacher_head = load_distill_module(
            config, student=student, teacher=teacher, divergence=divergence, dtype=DType.FLOAT32
        )
        self._device = torch.device(config.device.value)
        # In training mode only within a step: others generate with this module between steps.
        self.module = module.to(self._device).eval()
        self._teacher_head = teacher_head.to(self._device)
        self._optimizer = make_optimizer(self.module, config.optimizer)

    async def learn(self, batch: TrainingBatch) -> LearnerStep:
        """One optimizer step over the micro-batches of all ranks.

        Raises:
            RunFailedError: a loss or gradient is not finite; the weights are as before.
        """
        start = time.perf_counter()
        require_next_step(batch.learner_step, policy_version=self.policy_version)
        rate = learning_rate(batch.learner_step, self._config.optimizer, num_steps=self._num_steps)
        self._optimizer.zero_grad(set_to_none=True)
        self.module.train()
        total = sum(self._accumulate(batch, rank) for rank in range(len(batch.micro_batches)))
        self.module.eval()
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._config.optimizer.max_grad_norm)
        require_finite(norm.item(), "gradient norm", learner_step=batch.learner_step, rank=0)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.policy_version = batch.learner_step
        return LearnerStep(
            learner_step=batch.learner_step,
            policy_version=self.policy_version,
            loss=total,
            grad_norm=norm.item(),
            learning_rate=rate,
            num_loss_tokens=batch.num_loss_tokens,
            student_logprob_mean=None,
            learn_s=time.perf_counter() - start,
        )

    def _accumulate(self, batch: TrainingBatch, rank: int) -> float:
        """Add the gradients of one rank's micro-batches; returns their share of the loss."""
        total = 0.0
        for micro_batch in filter(None, batch.micro_batches[rank]):
            tensors = collate(micro_batch, pad_id=0, hidden_width=self._teacher_head.shape[1]).to(
                self._device
            )
            loss = micro_batch_loss(
                self.module, tensors, teacher_head=self._teacher_head, num_loss_tokens=batch.num_loss_tokens
            )
            require_finite(loss.item(), "loss", learner_step=batch.learner_step, rank=rank)
            loss.backward()
            total += loss.item()
        return total

    async def save(self, folder: Path) -> None:
        """Write optimizer, step and random state, and the student in `folder/hf`."""
        partial = begin(folder)
        save_hf(self.module.model, partial / HF_FOLDER, tokenizer_from=self._student)
        state = {"optimizer": self._optimizer.state_dict(), "rng": torch.get_rng_state()}
        torch.save(state, partial / _STATE_FILE)
        commit(folder, self._header())

    async def load(self, folder: Path) -> int:
        """Restore what `save` wrote; returns the policy version.

        Raises:
            CheckpointError: missing, torn, or written by another kind of learner.
        """
        header = read_header(folder, expected=self._header())
        files = sorted((folder / HF_FOLDER).glob("*.safetensors"))
        weights = dict(chain.from_iterable(load_file(file).items() for file in files))
        # A tied head is stored once; loading the embedding loads it.
        with torch.no_grad():
            for name, parameter in self.module.model.named_parameters():
                parameter.copy_(weights[name])
        state = torch.load(folder / _STATE_FILE, weights_only=True)
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.policy_version = header.policy_version
        return header.policy_version

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name in Hugging Face layout, tensor) of each weight; a tied head once, as the embedding."""
        for name, parameter in self.module.model.named_parameters():
            yield name, parameter.detach()

    def probe_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        """[T] student_logprobs of `token_ids` [T] after `prompt_ids` [P]."""
        return self.module.token_logprobs(prompt_ids, token_ids)

    def _header(self) -> CheckpointHeader:
        return CheckpointHeader(
            kind="local",
            policy_version=self.policy_version,
            num_ranks=1,
            zero_stage=0,
            dtype=DType.FLOAT32.value,
            num_parameters=sum(parameter.numel() for parameter in self.module.model.parameters()),
        )
