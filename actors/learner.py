"""One rank of the learner group: DeepSpeed around `trd_ray.training`.

All ranks make the same calls in the same order: `learn`, `save`, `load`, `push_weights` and
whatever else is marked *collective* wait for each other inside. The loss, the schedule and the
packing live in `trd_ray`; this file sums gradients over ranks, and gathers weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import ray
import torch
import torch.distributed as dist
from torch import Tensor

from actors.environment_deepspeed import (
    deepspeed_config,
    import_deepspeed,
    set_learner_environment,
    skip_shared_memory_op,
)
from actors.learner_meeting import Meeting, gather_values
from actors.learner_offload import change_residence
from actors.learner_senders import SenderOptions, WeightSenders, Which
from actors.learner_state import load_engine, load_random, save_adapters, save_engine, save_random
from actors.learner_weights import GATHER_BUCKET_BYTES, gathered_weights, manifest_of
from actors.members import Locatable
from trd_ray.choices import Device, ScoreMethod
from trd_ray.collate import TokenWeights
from trd_ray.config import LearnerConfig, MethodConfig
from trd_ray.device_turns import Residence
from trd_ray.disk import flush_tree
from trd_ray.learner_checkpoint import (
    HF_FOLDER,
    CheckpointHeader,
    begin,
    commit,
    lora_words,
    moving_teacher,
    partial_folder,
    read_header,
    save_hf,
)
from trd_ray.models import torch_dtype
from trd_ray.teacher_side import LearnerTeacher, micro_batch_loss
from trd_ray.training import (
    DistillModule,
    learning_rate,
    load_distill_module,
    make_optimizer,
    require_finite,
    require_next_step,
)
from trd_ray.types import FloatArray, IntArray, LearnerStep, SyncReport, TrainingBatch
from trd_ray.weights import TensorSpec, WeightManifest, checksum_named

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine  # type: ignore[import-untyped]

    from actors.weight_transfer import Receiver, WeightEndpoint

Sent = TypeVar("Sent")


class LearnerRank(Locatable):
    """One data-parallel rank. Call `setup` before anything but `find_master`."""

    def __init__(
        self,
        config: LearnerConfig,
        *,
        method: MethodConfig,
        score: ScoreMethod,
        student: Path,
        teacher: Path,
        rank: int,
        world_size: int,
        num_steps: int,
        seed: int,
        timeout_s: float = 1800.0,
    ) -> None:
        """
        Args:
            score: how the teacher scores; with `learner` each rank runs it itself.
            student: folder of the model that is trained.
            teacher: folder of the teacher at step 0; read only if the learner computes with it.
            world_size: number of ranks.
            num_steps: optimizer steps of the run, for the learning-rate schedule.
            timeout_s: longest wait in a collective for another rank.
        """
        self._config = config
        self._student = student
        self._teacher = teacher
        self._method = method
        self._score = score
        self._rank = rank
        self._world_size = world_size
        self._num_steps = num_steps
        self._seed = seed
        timeout = timedelta(seconds=timeout_s)
        self._meeting = Meeting(rank=rank, world_size=world_size, timeout=timeout)
        self._policy_version = 0
        self._engine: DeepSpeedEngine
        self._module: DistillModule
        self._teacher_side: LearnerTeacher
        self._device: torch.device
        self._senders = WeightSenders()

    def find_master(self, host: str = "") -> tuple[str, int]:
        """An address and a free port on this node at which the ranks can meet; for rank 0.

        `host` is of `meeting_host`: an address of this node, or empty for the one that Ray knows it by.
        Raises `PlacementError` if the node has no such address.
        """
        return self._meeting.find_master(host)

    def setup(self, master_address: str, master_port: int) -> None:
        """Load the models and start DeepSpeed. Collective.

        Raises:
            ModelError: a model folder cannot be used, or the tokenizers differ.
            ConfigError: the adapters do not fit the student.
        """
        config = self._config
        set_learner_environment(
            device=config.device.value,
            rank=self._rank,
            world_size=self._world_size,
            master_address=master_address,
            master_port=master_port,
            threads=config.threads,
        )
        on_cpu = config.device is Device.CPU
        if on_cpu:
            torch.set_num_threads(config.threads)
        torch.manual_seed(self._seed)
        # Before any rank waits for another: a model that cannot be used fails at once, everywhere.
        module = load_distill_module(
            config,
            method=self._method,
            score=self._score,
            student=self._student,
            teacher=self._teacher,
            dtype=config.dtype,
        )
        self._device = torch.device(config.device.value)
        self._teacher_side = self._load_teacher()
        deepspeed = import_deepspeed()
        if on_cpu:
            skip_shared_memory_op()
        backend = "gloo" if on_cpu else "nccl"
        self._meeting.join(backend, master_address, master_port)
        # Finds the group that is there, and uses it.
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        self._module = module
        self._engine = deepspeed.initialize(
            model=module, optimizer=make_optimizer(module, config.optimizer), config=deepspeed_config(config)
        )[0]

    def _load_teacher(self) -> LearnerTeacher:
        return LearnerTeacher(
            method=self._method,
            score=self._score,
            lora=self._config.lora,
            student=self._student,
            teacher=self._teacher,
            dtype=torch_dtype(self._config.dtype),
            device=self._device,
            # One copy is enough where it is only sent to the teachers' engines.
            keeps_moving=self._rank == 0,
        )

    def learn(self, batch: TrainingBatch) -> LearnerStep:
        """One optimizer step. Collective; every rank returns the same record but for `learn_s`.

        Args:
            batch: the whole step, or `batching.part_for_rank` of it, which is cheaper to send:
                hidden states are most of its bytes, and a rank reads none but its own.

        Raises:
            RunFailedError: a loss or the gradient is not finite; the weights are as before, and
                the group must be started anew.
        """
        start = time.perf_counter()
        require_next_step(batch.learner_step, policy_version=self._policy_version)
        rate = learning_rate(batch.learner_step, self._config.optimizer, num_steps=self._num_steps)
        self._engine.train()
        shares = gather_values(*self._accumulate(batch), device=self._device)
        for rank, (loss, _) in enumerate(shares):
            require_finite(loss, "loss", learner_step=batch.learner_step, rank=rank)
        grad_norm = self._update(rate, learner_step=batch.learner_step)
        self._teacher_side.follow(self._weights(), learner_step=batch.learner_step)
        self._policy_version = batch.learner_step
        return LearnerStep(
            learner_step=batch.learner_step,
            policy_version=self._policy_version,
            loss=sum(loss for loss, _ in shares),
            grad_norm=grad_norm,
            learning_rate=rate,
            num_loss_tokens=batch.num_loss_tokens,
            student_logprob_mean=sum(logprobs for _, logprobs in shares) / batch.num_trajectories,
            learn_s=time.perf_counter() - start,
            token_values=self._module.take_token_values(),
        )

    def _accumulate(self, batch: TrainingBatch) -> tuple[float, float]:
        """Forward and backward of this rank's micro-batches; returns its share of the loss, and the sum
        of its samples' mean student logprobs."""
        micro_batches = batch.micro_batches[self._rank]
        # DeepSpeed averages over ranks; the loss is a sum over them. In the weights, because there the
        # factor costs nothing.
        weights = TokenWeights.of(batch, self._method.normalization, factor=self._world_size)
        total = logprobs = 0.0
        for index, micro_batch in enumerate(micro_batches):
            tensors = self._teacher_side.collate(micro_batch, weights).to(self._device)
            # DeepSpeed counts to a fixed number of micro-batches unless it is told which is the last.
            self._engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            loss, summed = micro_batch_loss(self._engine, tensors, self._teacher_side)
            self._engine.backward(loss)
            total += loss.item() / self._world_size
            logprobs += summed.item()
        return total, logprobs

    def _update(self, rate: float, *, learner_step: int) -> float:
        """Clip and apply the gradients; returns their norm before clipping."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        # DeepSpeed computes the norm first, and leaves the weights alone if it is not finite.
        self._engine.step()
        grad_norm = float(self._engine.get_global_grad_norm())
        if getattr(self._engine.optimizer, "overflow", False):
            grad_norm = float("inf")
        require_finite(grad_norm, "gradient norm", learner_step=learner_step, rank=self._rank)
        return grad_norm

    def save(self, folder: Path) -> None:
        """Write a checkpoint, and the student in `folder/hf`. Collective; all ranks see `folder`.

        The DeepSpeed part holds the exact float32 weights and optimizer states. `hf` holds the
        weights in the learner's dtype, so that nothing is lost there either; with adapters, merged,
        and the adapters themselves are in `folder/adapter`. A teacher that moves is in a file of its own.
        """
        if self._rank == 0:
            begin(folder)
        dist.barrier()
        partial = partial_folder(folder)
        save_engine(self._engine, partial)
        save_random(partial, rank=self._rank, device=self._device)
        weights = self.send_weights(lambda named: {name: tensor.cpu().clone() for name, tensor in named})
        if weights is not None:
            save_hf(self._module.model, partial / HF_FOLDER, tokenizer_from=self._student, state_dict=weights)
        if self._module.adapters is not None:
            save_adapters(self._module.adapters, partial, rank=self._rank, zero_stage=self._config.zero_stage)
        if self._rank == 0:
            self._teacher_side.save(partial)
        flush_tree(partial)  # by each rank: a node flushes what it has written itself
        dist.barrier()
        if self._rank == 0:
            commit(folder, self._header())
        dist.barrier()

    def load(self, folder: Path) -> int:
        """Restore what `save` wrote, in a group that has not trained yet. Collective.

        Returns:
            The policy version.

        Raises:
            CheckpointError: missing, torn, or of another stage, number of ranks, model, adapters or
                kind of teacher.
        """
        header = read_header(folder, expected=self._header())
        load_engine(self._engine, folder, rank=self._rank)
        self._teacher_side.restore(folder, version=header.teacher_version)
        load_random(folder, rank=self._rank, device=self._device)
        self._policy_version = header.policy_version
        return header.policy_version

    def manifest(self, dtype: str) -> WeightManifest:
        """Names and shapes of all weights in Hugging Face layout, a tied head once; as `dtype`."""
        return manifest_of(self._module.model, dtype=dtype)

    def checksum(self, dtype: str) -> str | None:
        """`trd_ray.weights.checksum_named` of all weights in `dtype`, on rank 0. Collective."""
        target = TensorSpec(name="", dtype=dtype, shape=()).torch_dtype
        return self.send_weights(
            lambda named: checksum_named((name, tensor.to(target)) for name, tensor in named)
        )

    def send_weights(
        self,
        send: Callable[[Iterator[tuple[str, Tensor]]], Sent],
        *,
        bucket_bytes: int = GATHER_BUCKET_BYTES,
    ) -> Sent | None:
        """Give `send` of rank 0 each weight, gathered in buckets. Collective.

        Args:
            send: takes (name, tensor) pairs; a tensor is valid until the next is taken.
            bucket_bytes: most weights gathered at once; a larger one goes alone.

        Returns:
            What `send` returned, on rank 0; None elsewhere.
        """
        named = self._weights(bucket_bytes)
        try:
            return send(named) if self._rank == 0 else None
        finally:
            # The others are in the collectives of all buckets, also if `send` gave up early.
            for _ in named:
                pass

    def _weights(self, bucket_bytes: int = GATHER_BUCKET_BYTES) -> Iterator[tuple[str, Tensor]]:
        return gathered_weights(
            self._module.model, zero_stage=self._config.zero_stage, bucket_bytes=bucket_bytes
        )

    def listen_for_receivers(
        self, which: str, receivers: Sequence[Receiver], options: SenderOptions
    ) -> tuple[WeightEndpoint, ...]:
        """On rank 0: make the sender of a group; returns where each receiver connects.

        Args:
            which: `student` for generators, `teacher` for teachers.
        """
        return self._senders.listen(Which(which), receivers, options)

    def connect_receivers(self, which: str) -> None:
        """On rank 0: wait until all receivers have joined, which they do at the same time."""
        self._senders.get(Which(which)).open()

    def push_weights(self, which: str, dtype: str, read_back: bool) -> SyncReport | None:
        """Send the current weights to all receivers of a group; the report comes from rank 0.

        Collective for the `student`. The `teacher` is whole on rank 0, where alone this is called for it;
        its report holds the teacher's version.

        Args:
            read_back: see `WeightSender.send`.

        Raises:
            ActorTimeoutError, WeightSyncError: see `WeightSender.send`.
        """
        manifest = self.manifest(dtype)
        if Which(which) is Which.TEACHER:
            copy = self._teacher_side.copy
            if copy is None:
                raise RuntimeError("push_weights: rank 0 holds no teacher; its weights do not move")
            sender = self._senders.get(Which.TEACHER)
            return sender.send(copy.named_weights(), manifest, self.teacher_version(), read_back=read_back)

        def send(named: Iterator[tuple[str, Tensor]]) -> SyncReport:
            return self._senders.get(Which.STUDENT).send(
                named, manifest, self._policy_version, read_back=read_back
            )

        return self.send_weights(send)

    def teacher_version(self) -> int:
        """Completed optimizer steps in the teacher's weights; 0 as long as they are the first ones."""
        return self._teacher_side.version

    def reside(self, residence: Residence, timeout_s: float) -> None:
        """Hold so much of the device; `timeout_s` is the caller's, since no rank waits here."""
        if self._config.device is Device.CUDA:
            change_residence(self._engine, residence, device=self._device)

    def probe_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        """[T] student_logprobs of `token_ids` [T] after `prompt_ids` [P]. Collective."""
        return self._module.token_logprobs(prompt_ids, token_ids)

    def shutdown(self) -> None:
        """Leave the group; safe to call again."""
        self._senders.close()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _header(self) -> CheckpointHeader:
        return CheckpointHeader(
            kind="deepspeed",
            policy_version=self._policy_version,
            num_ranks=self._world_size,
            zero_stage=self._config.zero_stage,
            dtype=self._config.dtype.value,
            num_parameters=self.manifest(self._config.dtype.value).num_parameters,
            lora=lora_words(self._config.lora),
            moving_teacher=moving_teacher(self._method),
            teacher_version=self._teacher_side.version,
        )


LearnerRankActor = ray.remote(LearnerRank)
