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
from transformers import PreTrainedModel

from trd_ray.choices import DType, ScoreMethod
from trd_ray.collate import TokenWeights
from trd_ray.config import LearnerConfig, MethodConfig
from trd_ray.disk import saving_tensors
from trd_ray.learner_checkpoint import (
    ADAPTER_FOLDER,
    HF_FOLDER,
    CheckpointHeader,
    begin,
    commit,
    lora_words,
    moving_teacher,
    read_header,
    save_hf,
)
from trd_ray.lora import named_weights
from trd_ray.teacher_side import LearnerTeacher, micro_batch_loss
from trd_ray.training import (
    learning_rate,
    load_distill_module,
    make_optimizer,
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
        method: MethodConfig,
        score: ScoreMethod,
        student: Path,
        teacher: Path,
        num_steps: int,
        seed: int,
    ) -> None:
        """
        Args:
            score: how the teacher scores; with `learner` it is run here.
            student: folder of the model that is trained.
            teacher: folder of the teacher at step 0; read only if the learner computes with it.
            num_steps: optimizer steps of the run, for the learning-rate schedule.

        Raises:
            ModelError: a model folder cannot be used, or the tokenizers differ.
            ConfigError: the adapters do not fit the student.
        """
        if config.dtype is not DType.FLOAT32:
            logger.warning(
                "the learner in this process computes in float32, not in learner.dtype=%s", config.dtype
            )
        torch.manual_seed(seed)
        self.policy_version = 0
        self._config = config
        self._method = method
        self._student = student
        self._num_steps = num_steps
        module = load_distill_module(
            config, method=method, score=score, student=student, teacher=teacher, dtype=DType.FLOAT32
        )
        self._device = torch.device(config.device.value)
        # In training mode only within a step: others generate with this module between steps.
        self.module = module.to(self._device).eval()
        self._teacher = LearnerTeacher(
            method=method,
            score=score,
            lora=config.lora,
            student=student,
            teacher=teacher,
            dtype=torch.float32,
            device=self._device,
            keeps_moving=True,
        )
        self._optimizer = make_optimizer(self.module, config.optimizer)

    @property
    def teacher_model(self) -> PreTrainedModel | None:
        """The frozen teacher beside the student, whose weights follow it if the method's teacher moves.

        None if the learner holds none: the teacher is elsewhere, or the student without its adapters.
        """
        return None if self._teacher.copy is None else self._teacher.copy.model

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
        shares = [self._accumulate(batch, rank) for rank in range(len(batch.micro_batches))]
        self.module.eval()
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._config.optimizer.max_grad_norm)
        require_finite(norm.item(), "gradient norm", learner_step=batch.learner_step, rank=0)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._teacher.follow(self.named_weights(), learner_step=batch.learner_step)
        self.policy_version = batch.learner_step
        return LearnerStep(
            learner_step=batch.learner_step,
            policy_version=self.policy_version,
            loss=sum(loss for loss, _ in shares),
            grad_norm=norm.item(),
            learning_rate=rate,
            num_loss_tokens=batch.num_loss_tokens,
            student_logprob_mean=sum(logprobs for _, logprobs in shares) / batch.num_trajectories,
            learn_s=time.perf_counter() - start,
            token_values=self.module.take_token_values(),
        )

    def _accumulate(self, batch: TrainingBatch, rank: int) -> tuple[float, float]:
        """Add the gradients of one rank's micro-batches; returns their share of the loss, and the sum
        of their samples' mean student logprobs."""
        weights = TokenWeights.of(batch, self._method.normalization)
        total = logprobs = 0.0
        for micro_batch in filter(None, batch.micro_batches[rank]):
            tensors = self._teacher.collate(micro_batch, weights).to(self._device)
            loss, summed = micro_batch_loss(self.module, tensors, self._teacher)
            require_finite(loss.item(), "loss", learner_step=batch.learner_step, rank=rank)
            loss.backward()
            total += loss.item()
            logprobs += summed.item()
        return total, logprobs

    async def save(self, folder: Path) -> None:
        """Write optimizer, step and random state, a teacher that moves, adapters, and the student, merged
        with them, in `folder/hf`."""
        partial = begin(folder)
        weights = dict(self.named_weights())
        save_hf(self.module.model, partial / HF_FOLDER, tokenizer_from=self._student, state_dict=weights)
        state = {"optimizer": self._optimizer.state_dict(), "rng": torch.get_rng_state()}
        with saving_tensors(partial):
            if self.module.adapters is not None:
                adapters = {name: parameter.detach() for name, parameter in self.module.adapters.named()}
                self.module.adapters.save(partial / ADAPTER_FOLDER, adapters)
            self._teacher.save(partial)
            torch.save(state, partial / _STATE_FILE)
        commit(folder, self._header())

    async def load(self, folder: Path) -> int:
        """Restore what `save` wrote; returns the policy version.

        Raises:
            CheckpointError: missing, torn, or written by another kind of learner.
        """
        header = read_header(folder, expected=self._header())
        if self.module.adapters is None:
            self._load_weights(folder / HF_FOLDER)
        else:
            # Under adapters the student's own weights never change.
            self.module.adapters.load(folder / ADAPTER_FOLDER)
        self._teacher.restore(folder, version=header.teacher_version)
        state = torch.load(folder / _STATE_FILE, weights_only=True)
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.policy_version = header.policy_version
        return header.policy_version

    @torch.no_grad()
    def _load_weights(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        weights = dict(chain.from_iterable(load_file(file).items() for file in files))
        # A tied head is stored once; loading the embedding loads it.
        for name, parameter in self.module.model.named_parameters():
            parameter.copy_(weights[name])

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name in Hugging Face layout, tensor) of each weight, merged with its adapter; a tied head
        once, as the embedding."""
        for weight in named_weights(self.module.model):
            yield weight.name, weight.merged()

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
            num_parameters=sum(weight.base.numel() for weight in named_weights(self.module.model)),
            lora=lora_words(self._config.lora),
            moving_teacher=moving_teacher(self._method),
            teacher_version=self._teacher.version,
        )
