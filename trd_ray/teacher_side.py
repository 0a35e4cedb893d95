"""Where a learner finds the teacher: in the samples, in its own model, or in a copy beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from trd_ray.batching import MicroBatch
from trd_ray.choices import ScoreMethod, TeacherWeights
from trd_ray.collate import MicroBatchTensors, TokenWeights, collate
from trd_ray.config import LoraConfig, MethodConfig
from trd_ray.losses.objective import HiddenTeacher, LogitTransform, TeacherSide
from trd_ray.models import load_output_head, logit_transform
from trd_ray.objective_options import TargetKind, TeacherPlace, objective_needs, teacher_place
from trd_ray.teacher_copy import TeacherCopy, teacher_moves_after


@dataclass(frozen=True, kw_only=True)
class TeacherHead:
    """What turns hidden states that come with the samples into the teacher's logits."""

    weight: Tensor
    """[V or more, Dt]."""
    transform: LogitTransform


class LearnerTeacher:
    """The teacher as one learner rank sees it. Loads no more of it than the method needs."""

    def __init__(
        self,
        *,
        method: MethodConfig,
        score: ScoreMethod,
        lora: LoraConfig,
        student: Path,
        teacher: Path,
        dtype: torch.dtype,
        device: torch.device,
        keeps_moving: bool,
    ) -> None:
        """
        Args:
            dtype: format of the learner's models.
            keeps_moving: hold a teacher whose weights move also if only others compute with it.

        Raises:
            ModelError: a folder cannot be used.
        """
        self._needs = objective_needs(method, score)
        self._place = teacher_place(method, score, lora)
        self._head: TeacherHead | None = None
        self.copy: TeacherCopy | None = None
        """The frozen model beside the student, if this rank holds one."""
        self.version = 0
        """Completed optimizer steps of the student in the teacher's weights, if they move."""
        self._method = method
        if self._needs.target is TargetKind.HIDDEN:
            self._head = TeacherHead(
                weight=load_output_head(teacher, dtype).to(device), transform=logit_transform(teacher)
            )
        scores = self._place is TeacherPlace.COPY
        if scores or (method.teacher_moves and keeps_moving):
            external = method.teacher_weights is TeacherWeights.EXTERNAL
            self.copy = TeacherCopy.load(
                teacher if external else student,
                # What only travels is kept once, in the format that it is averaged in.
                dtype=dtype if scores else torch.float32,
                device=device,
                method=method,
            )

    def collate(self, micro_batch: MicroBatch, weights: TokenWeights) -> MicroBatchTensors:
        """`collate.collate` with what this method needs. Padding is never looked at."""
        width = 0 if self._head is None else self._head.weight.shape[1]
        return collate(micro_batch, pad_id=0, needs=self._needs, hidden_width=width, weights=weights)

    def compute(self, tensors: MicroBatchTensors) -> tuple[MicroBatchTensors, TeacherSide]:
        """The teacher's side of a micro-batch; a copy computes it here, once."""
        if self._head is not None and tensors.teacher_hidden is not None:
            head = self._head
            return tensors, HiddenTeacher(
                hidden=tensors.teacher_hidden, head=head.weight, transform=head.transform
            )
        if self._place is TeacherPlace.COPY and tensors.teacher_input is not None:
            assert self.copy is not None  # loaded with the place
            hidden = self.copy.hidden(tensors.teacher_input)
            return replace(tensors, teacher_input=None), self.copy.side(hidden)
        return tensors, tensors.topk

    def follow(self, student: Iterable[tuple[str, Tensor]], *, learner_step: int) -> None:
        """After a step: renew the teacher if it is time. Takes all of `student`, or none of it.

        Args:
            student: (name, tensor) pairs as in the model folder; taking them may be collective.
        """
        if not teacher_moves_after(self._method, learner_step):
            return
        if self.copy is None:
            for _ in student:
                pass
        else:
            self.copy.follow(student)
        self.version = learner_step

    def save(self, folder: Path) -> None:
        """Write the teacher's weights if they move."""
        if self._method.teacher_moves and self.copy is not None:
            self.copy.save(folder)

    def restore(self, folder: Path, *, version: int) -> None:
        """Read what `save` wrote when the teacher was at `version`.

        Raises:
            CheckpointError: the weights are missing, or of another model.
        """
        if self._method.teacher_moves and self.copy is not None:
            self.copy.restore(folder)
        self.version = version


def micro_batch_loss(
    module: nn.Module, tensors: MicroBatchTensors, teacher: LearnerTeacher
) -> tuple[Tensor, Tensor]:
    """Loss and sum of the samples' mean logprobs of one micro-batch, through a `DistillModule` or an
    engine around it."""
    tensors, side = teacher.compute(tensors)
    loss, logprobs = module(tensors, side)
    return loss, logprobs
