"""The senders of one learner rank: one for each group of engines that weights are pushed to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.weight_transfer import Receiver, WeightEndpoint, WeightSender


class Which(StrEnum):
    """Whose weights a push carries, and thereby to whom."""

    STUDENT = "student"
    """To the generators."""
    TEACHER = "teacher"
    """To the teachers' engines, where the teacher's weights move."""


@dataclass(frozen=True, kw_only=True)
class SenderOptions:
    """How a sender sends; as `WeightSender` has them."""

    backend: str
    address: str
    bucket_bytes: int
    shared_memory: bool
    timeout_s: float


class WeightSenders:
    """At most one open sender a group. On rank 0 alone."""

    def __init__(self) -> None:
        self._senders: dict[Which, WeightSender] = {}

    def listen(
        self, which: Which, receivers: Sequence[Receiver], options: SenderOptions
    ) -> tuple[WeightEndpoint, ...]:
        """Make the sender of a group anew; returns where each receiver connects."""
        # Imported here, so that a rank that pushes nothing does not load it.
        from actors.weight_transfer import WeightSender

        if which in self._senders:
            self._senders[which].close()
        self._senders[which] = WeightSender(
            backend=options.backend,
            address=options.address,
            bucket_bytes=options.bucket_bytes,
            shared_memory=options.shared_memory,
            timeout_s=options.timeout_s,
        )
        return self._senders[which].listen(receivers)

    def get(self, which: Which) -> WeightSender:
        """The sender of a group. Raises `RuntimeError` if there is none."""
        if which not in self._senders:
            raise RuntimeError(
                f"LearnerRank: call listen_for_receivers(which={which.value!r}) on rank 0 before weights are "
                "pushed"
            )
        return self._senders[which]

    def close(self) -> None:
        """Drop all groups; safe to call again."""
        for sender in self._senders.values():
            sender.close()
        self._senders.clear()
