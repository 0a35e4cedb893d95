"""The part of the weight transfer that runs inside vLLM's worker process.

Importing this module registers the `cpu` backend; `Engine` names `WorkerExtension` as vLLM's
worker extension, so that each worker imports it before it creates its transfer engine, whether
this package is installed or only on the path.
"""

from __future__ import annotations

import glob
import logging
import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.environment import ENGINE_OWNER_VARIABLE
from actors.weight_direct_load import DirectLoader
from actors.weight_readback import named_weights, tied_heads
from actors.weight_transfer import register
from actors.weight_transfer_group import TransferGroup
from actors.weight_transfer_receive import NamedTensors, receiving
from trd_ray.weights import TensorSpec, WeightManifest, checksum_named

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
    """Methods added to vLLM's worker, called through `collective_rpc`.

    Each returns what it has to say and what went wrong, one of them empty. If one of several workers raised,
    vLLM would leave the answers of the others in its queues, and take them for those to the next call.
    """

    def trd_init_weight_transfer(self, init_info: dict[str, object]) -> tuple[str, str]:
        """Join the sender's group."""
        worker: Any = self  # vLLM's, that this extends
        return _told(lambda: worker.init_weight_transfer_engine(init_info))

    def trd_update_weights(self, update_info: dict[str, object]) -> tuple[str, str]:
        """One whole update. One call, since each costs about as much as the push of a small model."""
        worker: Any = self

        def update() -> None:
            worker.start_weight_update()
            worker.update_weights(update_info)
            try:
                worker.finish_weight_update()
            finally:
                # vLLM's worker would refuse all later updates after an error here.
                worker._weight_update_active = False

        return _told(update)

    def trd_weight_checksum(self) -> tuple[str, str]:
        """The checksum of the weights that this worker computes with; see `named_weights`."""
        worker: Any = self
        return _told(lambda: checksum_named(named_weights(worker.get_model())))

    def trd_unlink_shared_memory(self) -> tuple[str, str]:
        """Take their names from the files through which workers on CPUs talk; vLLM would leave them behind.

        All workers have mapped them when an engine is up.
        """
        return _told(_unlink_shared_memory)


def _unlink_shared_memory() -> None:
    for path in Path("/dev/shm").glob(f"{glob.escape(os.environ['VLLM_DIST_IDENT'])}-*-cpushm_*"):
        path.unlink(missing_ok=True)


def _told(call: Callable[[], str | None]) -> tuple[str, str]:
    try:
        return call() or "", ""
    except Exception as error:  # whatever a model's loader raises: `Engine` raises it again
        logger.exception("a call about weights failed")
        return "", f"{type(error).__name__}: {error}"


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
    """Receives buckets and loads them layer by layer."""

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
        self._direct = DirectLoader.of(model, vllm_config)
        self._is_open = False

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
        try:
            group.connect()
        except (RuntimeError, TimeoutError):
            group.close()
            raise
        self._group = group
        self._bucket_bytes = init_info.bucket_bytes

    def start_weight_update(self) -> None:
        """Nothing yet: how the weights are loaded depends on what the push holds."""

    def finish_weight_update(self) -> None:
        """Close the layers that were opened, and pack their weights."""
        if self._is_open:
            self._is_open = False
            finalize_layerwise_reload(self.model, self.model_config)  # type: ignore[no-untyped-call]
            repack_tied_heads(self.model)

    def _load(self, manifest: WeightManifest, tensors: NamedTensors) -> None:
        if self._direct is not None and self._direct.fits(manifest, self.model_config.dtype):
            self._direct.load(tensors)
        else:
            self._reload(tensors)

    def _reload(self, tensors: NamedTensors) -> None:
        """Open the layers and have vLLM's own loader load all; closed by `finish_weight_update`."""
        # Before: a layer that is open has parameters that come with no push.
        expected = {name for name, _ in self.model.named_parameters()}
        # CPU layers keep packed weights, which a plain load could not replace.
        initialize_layerwise_reload(self.model)
        self._is_open = True
        if self._group is not None and self._group.memory is not None:
            # A loader of vLLM's may keep what it is given, and the memory is used again by the next push.
            tensors = ((name, tensor.clone()) for name, tensor in tensors)
        # One call for all: each walks over the whole model before it loads the first tensor.
        if missing := sorted(expected - cast("Any", self.model).load_weights(tensors)):
            raise RuntimeError(f"the push left out {len(missing)} parameters, the first is {missing[0]}")

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
        if self._group is None:
            raise RuntimeError("weights were sent before init_weight_transfer_engine")
        manifest = update_info.manifest()
        finished = False
        try:
            with receiving(
                self._group,
                manifest,
                policy_version=update_info.policy_version,
                bucket_bytes=self._bucket_bytes,
            ) as tensors:
                self._load(manifest, tensors)
            finished = True
        finally:
            if not finished:
                self._group = None  # closed with the error
                self.finish_weight_update()

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
