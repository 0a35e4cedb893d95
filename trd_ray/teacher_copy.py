"""A teacher that the learner holds beside the student, frozen or following it.

`ema`: after each step teacher = decay * teacher + (1 - decay) * student (Tarvainen and Valpola 2017,
arXiv 1703.01780, equation 1). `periodic`: every so many steps the teacher becomes the student.

Its weights are kept in float32 also where the models compute in bfloat16: with a decay of 0.99 a
step changes a weight by less than bfloat16 can tell, and the average would stand still.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from trd_ray.choices import TeacherWeights
from trd_ray.collate import SequenceTensors
from trd_ray.config import MethodConfig
from trd_ray.disk import saving_tensors
from trd_ray.errors import CheckpointError, describe
from trd_ray.losses.objective import HiddenTeacher, LogitTransform
from trd_ray.models import load_student, logit_transform

TEACHER_FILE = "teacher.safetensors"


class TeacherCopy:
    """A frozen causal language model that computes hidden states, and knows where its weights go."""

    def __init__(self, model: PreTrainedModel, *, transform: LogitTransform, method: MethodConfig) -> None:
        """
        Args:
            model: the teacher at step 0; it is put into evaluation mode and its weights are frozen.
        """
        self.model = model.eval().requires_grad_(False)
        self._transform = transform
        self._method = method
        # A float32 model is its own master.
        self._master = (
            {name: parameter.detach().float() for name, parameter in model.named_parameters()}
            if method.teacher_moves
            else {}
        )

    @classmethod
    def load(
        cls, path: Path, *, dtype: torch.dtype, device: torch.device, method: MethodConfig
    ) -> TeacherCopy:
        """The model of a folder.

        Raises:
            ModelError: the folder does not hold a usable model.
        """
        model = load_student(path, dtype).to(device)  # type: ignore[arg-type]
        return cls(model, transform=logit_transform(path), method=method)

    @torch.no_grad()
    def hidden(self, sequences: SequenceTensors) -> Tensor:
        """[N, Dt] final hidden states at the positions of `sequences`."""
        return hidden_states(self.model, sequences)

    def side(self, hidden: Tensor) -> HiddenTeacher:
        """The teacher's side of the objective for its hidden states [N, Dt]."""
        head: Tensor = self.model.get_output_embeddings().weight
        return HiddenTeacher(hidden=hidden, head=head.detach(), transform=self._transform)

    @torch.no_grad()
    def follow(self, student: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the student's weights after a step; (name, tensor) pairs as in its model folder."""
        share = 1.0
        if self._method.teacher_weights is TeacherWeights.EMA:
            share = 1.0 - self._method.ema_decay
        parameters = dict(self.model.named_parameters())
        for name, tensor in student:
            master = self._master[name]
            # Exact at both ends: a share of 0 changes nothing, a share of 1 copies.
            master.lerp_(tensor.to(master.device).float(), share)
            _write(parameters[name], master)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name as in the model folder, float32 tensor) of each weight; a tied head once."""
        yield from self._master.items()

    def save(self, folder: Path) -> None:
        """Write the float32 weights."""
        weights = {name: tensor.cpu().contiguous() for name, tensor in self._master.items()}
        with saving_tensors(folder):
            save_file(weights, folder / TEACHER_FILE)

    @torch.no_grad()
    def restore(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            CheckpointError: the file is missing, or of another model.
        """
        file = folder / TEACHER_FILE
        stored = load_file(file) if file.is_file() else {}
        if stored.keys() != self._master.keys():
            raise CheckpointError(
                describe(
                    "The teacher's weights are missing in the checkpoint",
                    where=str(file),
                    got=f"{len(stored)} tensors",
                    expected=f"the {len(self._master)} of the student's model",
                    remedy="resume from another checkpoint",
                )
            )
        parameters = dict(self.model.named_parameters())
        for name, master in self._master.items():
            master.copy_(stored[name])
            _write(parameters[name], master)


def teacher_moves_after(method: MethodConfig, learner_step: int) -> bool:
    """Whether the teacher's weights change after a step, counted from 1."""
    if method.teacher_weights is TeacherWeights.PERIODIC:
        return learner_step % method.periodic_every == 0
    return method.teacher_weights is TeacherWeights.EMA


def hidden_states(model: PreTrainedModel, sequences: SequenceTensors) -> Tensor:
    """[N, D] final hidden states of a model at the positions of `sequences`."""
    output = model.get_decoder()(
        input_ids=sequences.input_ids, attention_mask=sequences.attention_mask, use_cache=False
    )
    flat: Tensor = output.last_hidden_state.flatten(0, 1)
    return flat.index_select(0, sequences.positions)


def _write(parameter: Tensor, master: Tensor) -> None:
    """Round the master into the model's own format; nothing to do where they are one tensor."""
    if parameter.data_ptr() != master.data_ptr():
        parameter.copy_(master)
