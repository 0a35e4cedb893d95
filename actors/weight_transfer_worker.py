"""The part of the weight transfer that runs inside vLLM's worker process.

Importing this module registers the `cpu` backend; `Engine` names `WorkerExtension` as vLLM's
worker extension, so that each worker imports it before it creates its transfer engine, whether
this package is installed or only on the path.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.environment import ENGINE_OWNER_VARIABLE
from actors.weight_readback import named_weights, tied_heads
from actors.weight_transfer import register
from actors.weight_transfer_group import TRAILER_BYTES, Bucket, TransferGroup, bucket_view, plan_buckets
from trd_ray.weights import TensorSpec, WeightChecksum, WeightManifest, checksum_named

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.config.weight_transfer import WeightTransferConfig

logger = logging.getLogger(__name__)

register()


def _exit_with_owner() -> None:
    """End this process when the process that created the engine is gone, however it ended.

    vLLM's processes would wait for messages that never come after their owner was killed, and
    keep its memory and cores.
    """
    owner = int(os.environ.get(ENGINE_OWNER_VARIABLE, "0"))
    if owner in (0, os.getpid()):
        return
    try:
        descriptor = os.pidfd_open(owner)
    except ProcessLookupError:
        os._exit(1)
    except (AttributeError, OSError) as error:  # not Linux, or an old kernel
        logger.warning("cannot watch process %d, the owner of this engine: %s", owner, error)
        return

    def watch() -> None:
        select.select([descriptor], [], [])
        # No cleanup: the process that it would talk to does not exist any more.
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-owner", daemon=True).start()


_exit_with_owner()


class WorkerExtension:
    """Methods added to vLLM's worker, called through `collective_rpc`."""

    def trd_weight_checksum(self) -> str:
        """Return the checksum of the weights that this worker computes with; see `named_weights`."""
        model = self.get_model()  # type: ignore[attr-defined]  # of vLLM's worker, that this extends
        return checksum_named(named_weights(model))


@dataclass
class CpuInitInfo(WeightTransferInitInfo):
    """What `Engine.init_weight_transfer` sends to each worker."""

    master_address: str
    master_port: int
    world_size: int
    rank_offset: int
    bucket_bytes: int
    timeout_s: float


@dataclass
class CpuUpdateInfo(WeightTransferUpdateInfo):
    """What `Engine.update_weights` sends to each worker: the manifest and the version."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    policy_version: int

    def manifest(self) -> WeightManifest:
        return WeightManifest(
            tensors=tuple(
                TensorSpec(name=name, dtype=dtype, shape=tuple(shape))
                for name, dtype, shape in zip(self.names, self.dtype_names, self.shapes, strict=True)
            )
        )


class CpuWeightTransferEngine(WeightTransferEngine[CpuInitInfo, CpuUpdateInfo]):
    """Receives buckets by gloo and loads them layer by layer."""

    init_info_cls = CpuInitInfo
    update_info_cls = CpuUpdateInfo

    def __init__(
        self,
        config: WeightTransferConfig,
        vllm_config: VllmConfig,
        device: torch.device,
        model: torch.nn.Module,
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._group: TransferGroup | None = None
        self._bucket_bytes = 0
        self._expected: set[str] = set()
        self._loaded: set[str] = set()

    def init_transfer_engine(self, init_info: CpuInitInfo) -> None:
        """Join the group of the sender; leaves an earlier group."""
        self.shutdown()
        parallel = self.parallel_config
        # As vLLM's NCCL backend counts: workers of all data-parallel replicas in one row.
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        group = TransferGroup(
            address=init_info.master_address,
            port=init_info.master_port,
            rank=rank,
            world_size=init_info.world_size,
            timeout_s=init_info.timeout_s,
        )
        group.connect()
        self._group = group
        self._bucket_bytes = init_info.bucket_bytes

    def start_weight_update(self) -> None:
        """Open the layers for loading: CPU layers keep packed weights, which must be made anew."""
        self._expected = {name for name, _ in self.model.named_parameters()}
        self._loaded = set()
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Close the layers and pack their weights."""
        finalize_layerwise_reload(self.model, self.model_config)  # type: ignore[no-untyped-call]
        repack_tied_heads(self.model)

    def update_weights(self, update_info: dict[str, object]) -> None:
        """Receive and load one push. The base class would synchronise an accelerator here."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: CpuUpdateInfo) -> None:
        """Receive each bucket, load its tensors, and compare version and checksum.

        Raises:
            RuntimeError: not connected, the sender was lost or late, an unknown name or shape,
                parameters left out, or another version or checksum than the sender's. The layers
                are closed again then, with weights of two versions, so that a later whole push
                can repair them.
        """
        group = self._group
        if group is None:
            raise RuntimeError("weights were sent before init_weight_transfer_engine")
        push = group.begin_push()
        finished = False
        try:
            self._receive(group, push, update_info)
            finished = True
        except (RuntimeError, ValueError, KeyError, AttributeError, AssertionError) as error:
            # What vLLM's loaders raise for a wrong name or shape. The sender shall know why.
            group.report_error(push, f"{type(error).__name__}: {error}")
            # Without its connections the sender need not wait out its limit.
            self.shutdown()
            raise
        finally:
            if not finished:
                finalize_layerwise_reload(self.model, self.model_config)  # type: ignore[no-untyped-call]
        group.report_done(push)

    def _receive(self, group: TransferGroup, push: int, update_info: CpuUpdateInfo) -> None:
        checksum = WeightChecksum()
        group.report(push, "0")
        buckets = plan_buckets(update_info.manifest(), self._bucket_bytes)
        for index, (bucket, buffer) in enumerate(_received(group, buckets), start=1):
            tensors = [(entry.spec.name, bucket_view(buffer, entry)) for entry in bucket.entries]
            for name, tensor in tensors:
                checksum.add(name, tensor)
            self._loaded |= cast("Any", self.model).load_weights(tensors)
            group.report(push, str(index))
        trailer = torch.empty(TRAILER_BYTES, dtype=torch.uint8)
        group.broadcast(trailer).wait()
        raw = bytes(trailer.tolist())
        version, digest = int.from_bytes(raw[:-32], "little"), raw[-32:]
        if version != update_info.policy_version:
            raise RuntimeError(f"received policy version {version}, expected {update_info.policy_version}")
        if digest != checksum.digest():
            raise RuntimeError(
                f"received weights with checksum {checksum.hexdigest()}, the sender has {digest.hex()}"
            )
        if missing := sorted(self._expected - self._loaded):
            raise RuntimeError(f"the push left out {len(missing)} parameters, the first is {missing[0]}")

    def shutdown(self) -> None:
        """Leave the group; the engine goes on serving."""
        if self._group is not None:
            self._group.close()
            self._group = None


def repack_tied_heads(model: torch.nn.Module) -> None:
    """Pack the output head anew where it shares the embedding's rows.

    The layerwise reload packs only modules that tensors were loaded into. A tied head gets none of
    its own, so its kernel would go on making logits with the weights of the first load.
    """
    for head in tied_heads(model):
        if hasattr(head, "cpu_linear"):
            head.quant_method.process_weights_after_loading(head)


def _received(group: TransferGroup, buckets: tuple[Bucket, ...]) -> Iterator[tuple[Bucket, torch.Tensor]]:
    """Yield each bucket with its bytes, the next one on its way meanwhile.

    Each bucket gets its own buffer: vLLM keeps the tensors of a layer until it is whole.
    """

    def begin(bucket: Bucket) -> tuple[Bucket, torch.Tensor, torch.distributed.Work]:
        buffer = torch.empty(bucket.num_bytes, dtype=torch.uint8)
        return bucket, buffer, group.broadcast(buffer)

    pending = begin(buckets[0]) if buckets else None
    for index in range(len(buckets)):
        assert pending is not None
        bucket, buffer, work = pending
        work.wait()
        pending = begin(buckets[index + 1]) if index + 1 < len(buckets) else None
        yield bucket, buffer
