"""What a plan says of memory and of bytes on the network, beside what is really allocated and sent.

    python -m benchmarks.memory [learner] [engine] [network --run RUN_DIR]

- learner: a DeepSpeed rank in a process of its own. Bytes of its tensors by what they are, the peak of a step
  beside them as torch's allocator counts it, and how far the process has grown (RSS), for a random model.
- engine: a vLLM engine in a process of its own. Bytes of the KV cache that it made, and how
  much larger the process of a model with twice the layers is.
- network: the records of a run's log of the buffer, pickled as Ray sends them, and the bytes of a push.

Each line ends in planned over measured.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_ray.choices import DType
from trd_ray.config import EngineConfig, LearnerConfig, LoraConfig, MethodConfig
from trd_ray.kv_cache import BYTES, kv_room
from trd_ray.memory_plan import learner_parts
from trd_ray.model_files import model_facts

_MIB = 2**20
_SIZES = {
    "vocab_size": 8192, "hidden_size": 512, "num_layers": 12, "num_heads": 8, "num_kv_heads": 4,
    "head_dim": 64, "intermediate_size": 1536, "weight_scale": 0.02,
}  # fmt: skip
"""About 42 million parameters."""
_TOKENS, _SEQUENCES, _CHUNK = 1024, 4, 256
_KV_GIB = 0.25
_CASES = {
    "float32, ZeRO 1": LearnerConfig(zero_stage=1),
    "float32, ZeRO 3": LearnerConfig(zero_stage=3),
    "bfloat16, ZeRO 2": LearnerConfig(zero_stage=2, dtype=DType.BFLOAT16),
    "LoRA 16, checkpointing": LearnerConfig(lora=LoraConfig(rank=16), activation_checkpointing=True),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison, in bytes."""

    what: str
    planned: float
    measured: float

    def __str__(self) -> str:
        ratio = self.planned / self.measured if self.measured else float("inf")
        return f"{self.what:58} {self.planned / _MIB:10,.2f} {self.measured / _MIB:10,.2f} MiB  {ratio:6.2f}"


def compare_learner(model: Path) -> Iterator[Row]:
    facts = model_facts(model)
    for name in _CASES:
        made = _in_process("_learner", name, str(model))
        parts = learner_parts(_learner(name), facts)
        weights = parts["weights"] + parts.get("adapters (about)", 0)
        planned = sum(parts.values()) + parts.get("head in float32", 0)  # the teacher's, as large here
        peak = made["kept"] + made["peak"]
        yield Row(what=f"learner, {name}: weights", planned=weights, measured=made["weights"])
        if _learner(name).zero_stage < 3:  # under ZeRO 3 gradients and bucket stay, too
            yield Row(what=f"learner, {name}: weights and optimizer", planned=weights + parts["optimizer"],
                      measured=made["kept"])  # fmt: skip
            yield Row(what=f"learner, {name}: added by a step",
                      planned=planned - weights - parts["optimizer"], measured=made["peak"])  # fmt: skip
        yield Row(what=f"learner, {name}: all at the peak", planned=planned, measured=peak)
        yield Row(what=f"learner, {name}: growth of the process", planned=planned, measured=made["rss"])


def compare_engine(model: Path) -> Iterator[Row]:
    """vLLM repacks the weights of linear layers into memory that torch does not know, on a CPU; so they
    are told from the processes of two models, of which one has twice the layers."""
    from tests.tiny_models import make_tiny_qwen3

    sizes: dict[str, Any] = _SIZES | {"num_layers": 2 * int(_SIZES["num_layers"])}
    large = make_tiny_qwen3(model.with_name("large"), **sizes)
    facts, more = model_facts(model), model_facts(large)
    for dtype in DType:
        engine = EngineConfig(dtype=dtype, kv_cache_gib=_KV_GIB)
        made, other = (_in_process("_engine", dtype.value, str(each)) for each in (model, large))
        room = kv_room(engine, facts, num_bytes=int(_KV_GIB * 2**30))
        grown = (more.num_parameters - facts.num_parameters) * BYTES[dtype]
        yield Row(what=f"engine, {dtype}: weights of 12 more layers", planned=grown,
                  measured=other["private"] - made["private"])  # fmt: skip
        yield Row(what=f"engine, {dtype}: KV cache", planned=room.num_bytes or 0, measured=made["cache"])
        yield Row(what=f"engine, {dtype}: KV cache of {made['tokens']:,} tokens",
                  planned=made["tokens"] * room.bytes_per_token, measured=made["cache"])  # fmt: skip


def compare_network(run_dir: Path) -> Iterator[Row]:
    from trd_ray.buffer_log import run_log
    from trd_ray.config_loader import load_config
    from trd_ray.cost.run_rates import rates_of_run
    from trd_ray.cost.traffic import step_traffic
    from trd_ray.planned_models import planned_facts
    from trd_ray.run_folder import RunFolder
    from trd_ray.step_batch import step_batch

    folder = RunFolder(run_dir)
    config = load_config(folder.config)
    log = run_log(config.pipeline, folder)
    step = max(log.steps())
    records = log.read_step(step)
    lengths = rates_of_run(run_dir).lengths
    assert lengths is not None  # a run has its own
    consumed = [record for record in records if record.target is not None]
    batch = step_batch(consumed, learner_step=step, method=config.method, learner=config.learner)
    measured = {
        "prompts of rollouts": [record.prompt.token_ids for record in records],
        "rollouts": [record.rollout.completion for record in records if record.rollout],
        "prompts of refinements": [
            record.refinement.prompt.token_ids for record in records if record.refinement
        ],
        "refinements": [record.refinement.completion for record in records if record.refinement],
        "hidden states": [record.target for record in consumed],
        "trajectories to score": [ids for r in consumed for ids in (r.teacher_context_ids, r.token_ids)],
        "training batch": [batch],
    }
    student, teacher = planned_facts(config.student.model), planned_facts(config.teacher_model)
    for flow in step_traffic(config, lengths, student=student, teacher=teacher):
        if flow.what in measured:
            sent = sum(len(pickle.dumps(record, protocol=5)) for record in measured[flow.what])
            yield Row(what=f"network, {flow.what}", planned=flow.num_bytes, measured=sent)


def _in_process(part: str, *arguments: str) -> dict[str, int]:
    """Run one measurement where nothing else was allocated."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", part, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        timeout=1200,
        check=True,
    )
    made: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return made


def _learner(name: str) -> LearnerConfig:
    from dataclasses import replace

    return replace(_CASES[name], threads=1, micro_batch_tokens=_TOKENS, kl_chunk_size=_CHUNK)


def _measure_learner(name: str, model: Path) -> dict[str, int]:
    import gc

    import deepspeed  # noqa: F401 - so that its own memory is not counted
    import psutil
    import torch

    from actors.learner import LearnerRank
    from benchmarks.live_bytes import peak_bytes, tensor_bytes
    from tests.unit.training_samples import make_samples
    from trd_ray.batching import make_training_batch
    from trd_ray.choices import ScoreMethod

    config, process = _learner(name), psutil.Process()
    before = process.memory_info().rss
    rank = LearnerRank(
        config, method=MethodConfig(), score=ScoreMethod.HIDDEN, student=model, teacher=model, rank=0,
        world_size=1, num_steps=10, seed=0,
    )  # fmt: skip
    rank.setup(*rank.find_master("127.0.0.1"))
    length = _TOKENS // _SEQUENCES
    # Two micro-batches: the second meets the gradients of the first.
    samples = make_samples(
        [(length // 4, length - length // 4)] * (2 * _SEQUENCES), vocab_size=100,
        hidden_width=_SIZES["hidden_size"],
    )  # fmt: skip

    def learn(step: int) -> None:
        rank.learn(make_training_batch(samples, learner_step=step, num_ranks=1, micro_batch_tokens=_TOKENS))

    learn(1)
    gc.collect()
    head = rank._teacher_side  # holds the teacher's head, which is a part of its own
    teacher = {t.untyped_storage().data_ptr() for t in _tensors_in(head)}
    tensors = [
        t for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.device.type == "cpu"
    ]  # fmt: skip
    kept = tensor_bytes(t for t in tensors if t.untyped_storage().data_ptr() not in teacher)
    weights = tensor_bytes(rank._module.parameters())
    with peak_bytes() as peak:
        learn(2)
    grown = process.memory_info().rss - before
    rank.shutdown()
    return {"weights": weights, "kept": kept, "peak": peak.num_bytes, "rss": grown}


def _tensors_in(owner: object) -> Iterator[object]:
    import torch

    for value in vars(owner).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif hasattr(value, "__dict__") or hasattr(value, "__slots__"):
            names = getattr(value, "__slots__", None) or vars(value)
            yield from (v for n in names if isinstance(v := getattr(value, n, None), torch.Tensor))


def _measure_engine(dtype: str, model: Path) -> dict[str, int]:
    import gc

    import psutil

    from actors.environment import set_engine_environment

    set_engine_environment(device="cpu", threads=1)
    from vllm import LLM

    llm = LLM(
        model=str(model), dtype=dtype, max_model_len=512, max_num_seqs=16, enforce_eager=True,
        kv_cache_memory_bytes=int(_KV_GIB * 2**30), seed=0, disable_log_stats=True,
    )  # fmt: skip
    gc.collect()
    private = psutil.Process().memory_full_info().uss
    (cache,) = llm.collective_rpc(_cache_bytes)
    config = llm.llm_engine.vllm_config.cache_config
    tokens = int(config.num_gpu_blocks or 0) * int(config.block_size or 0)
    return {"private": private, "cache": cache, "tokens": tokens}


def _cache_bytes(worker: object) -> int:
    from benchmarks.live_bytes import tensor_bytes

    return tensor_bytes(worker.model_runner.kv_caches)  # type: ignore[attr-defined]


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if sys.argv[1:2] in (["_learner"], ["_engine"]):
        measure = {"_learner": _measure_learner, "_engine": _measure_engine}[sys.argv[1]]
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["learner", "engine"])
    parser.add_argument("--run", type=Path, help="a run folder, for network")
    options = parser.parse_args()
    print(f"{'':58} {'planned':>10} {'measured':>10}      planned / measured")
    with tempfile.TemporaryDirectory(prefix="trd_memory_") as folder:
        from tests.tiny_models import make_tiny_qwen3

        model = make_tiny_qwen3(Path(folder) / "model", **_SIZES)
        for part in options.parts:
            compare = {
                "learner": lambda: compare_learner(model),
                "engine": lambda: compare_engine(model),
                "network": lambda: compare_network(options.run),
            }[part]
            for row in compare():
                print(row, flush=True)


if __name__ == "__main__":
    main()
