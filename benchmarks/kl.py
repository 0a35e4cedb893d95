"""Peak memory and time of the divergence between two language models, forward and backward, in one run.

From final hidden states and output heads to the gradients of the student's. Compared are

- `naive`      the logits of all tokens, log_softmax, torch's kl_div and autograd
- `chunked`    trd_ray.losses.chunked_token_divergence: any weight of a token, known in the backward only
- `objective`  trd_ray.losses.chunked_objective: weights known, gradients made in the forward pass
- `liger`      liger_kernel.chunked_loss.LigerFusedLinearJSDLoss without its hard loss, as it is and compiled
- `trl`        trl.kernels.chunked_divergence.ChunkedDivergenceFunction
- `trl-gkd`    trl's GKDTrainer.generalized_jsd_loss on the logits of all tokens

The peers' beta means what ours does: 0 is KL(teacher || student), 1 is KL(student || teacher), and
between them beta KL(teacher || M) + (1 - beta) KL(student || M), M = beta teacher + (1 - beta) student.

Each measurement is one fresh process: inputs, one small call to warm up, then the measured call. The
rounds take the variants in turns, so that a slower machine in between hits all of them.
Usage: python -m benchmarks.kl --tokens 4096 --vocab 151936 --hidden 1024 --repeats 3 [--peers]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from trd_ray.losses import (
    DivergenceOptions,
    HiddenTeacher,
    ObjectiveOptions,
    TokenBatch,
    chunked_objective,
    chunked_token_divergence,
)

OURS = ("naive", "chunked", "objective")
PEERS = {"liger": "liger_kernel", "liger-compiled": "liger_kernel", "trl": "trl", "trl-gkd": "trl"}
BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is computed."""

    tokens: int
    vocab: int
    hidden: int
    divergence: str
    chunk: int
    peer_chunk: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One fresh process."""

    seconds: float
    cpu_seconds: float
    """Of all threads; less moved than `seconds` by what else runs on the machine."""
    peak_bytes: int
    """Above what was resident before the measured call: inputs, libraries."""
    loss: float
    difference: float | None
    """Largest difference of a gradient to the naive one, by the largest naive entry of that tensor.
    None if it was not compared: of the naive variant itself, and without one."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    student_hidden: Tensor
    student_head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    targets: Tensor

    def first(self, num: int) -> Inputs:
        """The same with `num` tokens and gradients of its own."""
        return Inputs(
            student_hidden=self.student_hidden.detach()[:num].clone().requires_grad_(),
            student_head=self.student_head.detach().requires_grad_(),
            teacher_hidden=self.teacher_hidden[:num],
            teacher_head=self.teacher_head,
            targets=self.targets[:num],
        )


Loss = Callable[[Inputs, Size], Tensor]


def make_inputs(size: Size) -> Inputs:
    generator = torch.Generator().manual_seed(SEED)

    def normal(rows: int, scale: float) -> Tensor:
        return torch.empty(rows, size.hidden).normal_(generator=generator).mul_(scale)

    return Inputs(
        student_hidden=normal(size.tokens, 1.0).requires_grad_(),
        # Logits then have a standard deviation of 3, about that of a trained model.
        student_head=normal(size.vocab, 3.0 * size.hidden**-0.5).requires_grad_(),
        teacher_hidden=normal(size.tokens, 1.0),
        teacher_head=normal(size.vocab, 3.0 * size.hidden**-0.5),
        targets=torch.randint(size.vocab, (size.tokens,), generator=generator),
    )


def naive(inputs: Inputs, size: Size) -> Tensor:
    student = torch.log_softmax(inputs.student_hidden @ inputs.student_head.T, dim=-1)
    teacher = torch.log_softmax(inputs.teacher_hidden @ inputs.teacher_head.T, dim=-1)
    kl = functional.kl_div  # kl_div(a, b) is KL(b || a)
    if size.divergence == "forward_kl":
        return kl(student, teacher, reduction="sum", log_target=True) / size.tokens
    if size.divergence == "reverse_kl":
        return kl(teacher, student, reduction="sum", log_target=True) / size.tokens
    mixture = torch.logaddexp(student, teacher) - torch.log(torch.tensor(2.0))
    both = kl(mixture, teacher, reduction="sum", log_target=True)
    both = both + kl(mixture, student, reduction="sum", log_target=True)
    return both / 2 / size.tokens


def chunked(inputs: Inputs, size: Size) -> Tensor:
    return chunked_token_divergence(
        inputs.student_hidden,
        inputs.student_head,
        inputs.teacher_hidden,
        inputs.teacher_head,
        chunk_size=size.chunk,
        divergence=size.divergence,
    ).mean()


def objective(inputs: Inputs, size: Size) -> Tensor:
    num = len(inputs.targets)
    return chunked_objective(
        inputs.student_hidden,
        inputs.student_head,
        HiddenTeacher(hidden=inputs.teacher_hidden, head=inputs.teacher_head),
        TokenBatch(target_ids=inputs.targets, weights=torch.full((num,), 1.0 / num)),
        options=ObjectiveOptions(divergence=DivergenceOptions(divergence=size.divergence)),
        chunk_size=size.chunk,
        vocab_size=size.vocab,
    ).loss


def liger(inputs: Inputs, size: Size, *, compiled: bool = False) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=BETA[size.divergence],
        compiled=compiled,
        chunk_size=size.peer_chunk,
    )
    value: Tensor = loss(
        inputs.student_hidden,
        inputs.student_head,
        inputs.teacher_hidden,
        inputs.teacher_head,
        inputs.targets,
    )
    return value


def liger_compiled(inputs: Inputs, size: Size) -> Tensor:
    return liger(inputs, size, compiled=True)


def trl(inputs: Inputs, size: Size) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    values, _ = ChunkedDivergenceFunction.apply(
        inputs.student_hidden,
        inputs.student_head,
        None,
        inputs.teacher_hidden,
        inputs.teacher_head,
        None,
        BETA[size.divergence],
    )
    return values.mean()


def trl_gkd(inputs: Inputs, size: Size) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    with torch.no_grad():
        teacher_logits = inputs.teacher_hidden @ inputs.teacher_head.T
    value: Tensor = GKDTrainer.generalized_jsd_loss(
        (inputs.student_hidden @ inputs.student_head.T)[None],
        teacher_logits[None],
        labels=inputs.targets[None],
        beta=BETA[size.divergence],
    )
    return value


VARIANTS: dict[str, Loss] = {
    "naive": naive,
    "chunked": chunked,
    "objective": objective,
    "liger": liger,
    "liger-compiled": liger_compiled,
    "trl": trl,
    "trl-gkd": trl_gkd,
}


def status_bytes(key: str) -> int:
    """`VmRSS` (resident now) or `VmHWM` (most resident since the last reset) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def measure(variant: str, size: Size, folder: Path, *, keep: bool) -> Measured:
    """Run one variant in this process. The first call of the folder must be the naive one.

    Args:
        folder: where the naive gradients are; written by the naive variant.
        keep: compare the gradients with the naive ones.
    """
    compute = VARIANTS[variant]
    inputs = make_inputs(size)
    compute(inputs.first(min(size.tokens, size.peer_chunk, 64)), size).backward()
    if variant == "liger-compiled":  # once more in the shape of a whole chunk, which is compiled anew
        compute(inputs.first(min(size.tokens, size.peer_chunk)), size).backward()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    before = status_bytes("VmRSS")
    start, cpu_start = time.perf_counter(), time.process_time()
    loss = compute(inputs, size)
    loss.backward()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = status_bytes("VmHWM") - before
    gradients = (inputs.student_hidden.grad, inputs.student_head.grad)
    difference = None
    if keep and variant == "naive":
        torch.save(gradients, folder / "naive.pt")
    elif keep and (folder / "naive.pt").exists():
        expected = torch.load(folder / "naive.pt", mmap=True)
        difference = max(
            float((got - want).abs().max() / want.abs().max())
            for got, want in zip(gradients, expected, strict=True)
        )
    return Measured(
        seconds=seconds, cpu_seconds=cpu_seconds, peak_bytes=peak, loss=loss.item(), difference=difference
    )


def measure_apart(variant: str, size: Size, folder: Path, *, keep: bool, threads: int) -> Measured | str:
    """`measure` in a fresh process; its last line of error if it fails."""
    command = [sys.executable, "-m", "benchmarks.kl", "--one", variant, "--folder", str(folder)]
    command += [f"--{key.replace('_', '-')}={value}" for key, value in asdict(size).items()]
    command += ["--threads", str(threads)] + (["--keep"] if keep else [])
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"ended with {done.returncode} (out of memory?)"
    return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))


def compare(names: list[str], size: Size, *, repeats: int, threads: int) -> None:
    rounds: dict[str, list[Measured]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            for name in names:
                if name in failed:
                    continue
                got = measure_apart(name, size, Path(folder), keep=repeat == 0, threads=threads)
                if isinstance(got, str):
                    failed[name] = got
                else:
                    rounds[name].append(got)
                    print(f"round {repeat + 1} {name}: {got}", file=sys.stderr, flush=True)
    load = os.getloadavg()[0]
    print(f"\n{size}, float32, {threads} threads, {repeats} rounds, load average {load:.1f}")
    print(
        f"{'variant':15} {'peak MB':>9} {'of naive':>9} {'seconds':>9} {'least-most':>13} {'of naive':>9}",
        end="",
    )
    print(f" {'loss':>10} {'gradients':>10}")
    base = rounds.get("naive") or []
    for name in names:
        if name in failed:
            print(f"{name:15} not measured: {failed[name]}")
        else:
            print_row(name, rounds[name], base)


def print_row(name: str, runs: list[Measured], base: list[Measured]) -> None:
    seconds = [run.seconds for run in runs]
    peak = max(run.peak_bytes for run in runs)
    memory_ratio = time_ratio = "-"
    if base:
        memory_ratio = f"{peak / max(run.peak_bytes for run in base):.3f}"
        # Of each round on its own: the rounds are minutes apart.
        ratios = [a / b.seconds for a, b in zip(seconds, base, strict=True)]
        time_ratio = f"{statistics.median(ratios):.2f}"
    print(
        f"{name:15} {peak / 1e6:9.0f} {memory_ratio:>9} {statistics.median(seconds):9.2f} "
        f"{min(seconds):6.2f}-{max(seconds):<6.2f} {time_ratio:>9} "
        f"{statistics.median(run.cpu_seconds for run in runs):8.1f} {runs[0].loss:10.5f} "
        f"{'-' if runs[0].difference is None else format(runs[0].difference, '.1e'):>10}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096])
    parser.add_argument("--vocab", type=int, nargs="+", default=[151936])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--divergence", choices=sorted(BETA), default="forward_kl")
    parser.add_argument("--chunk", type=int, default=384, help="chunk_size of ours")
    parser.add_argument(
        "--peer-chunk", type=int, default=1024, help="chunk_size of Liger, whose default it is"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--peers", action="store_true", help="also Liger and TRL (launch/requirements/bench.txt)"
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="only these")
    for internal in ("--one", "--folder"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    sizes = [
        Size(
            tokens=tokens,
            vocab=vocab,
            hidden=arguments.hidden,
            divergence=arguments.divergence,
            chunk=arguments.chunk,
            peer_chunk=arguments.peer_chunk,
        )
        for vocab in arguments.vocab
        for tokens in arguments.tokens
    ]
    if arguments.one:
        print(
            json.dumps(asdict(measure(arguments.one, sizes[0], Path(arguments.folder), keep=arguments.keep)))
        )
        return
    names = arguments.variants or [*OURS, *(PEERS if arguments.peers else ())]
    names.sort(key=lambda name: name != "naive")  # the others compare their gradients with it
    for name in list(names):
        if name in PEERS and importlib.util.find_spec(PEERS[name]) is None:
            print(f"{name}: {PEERS[name]} is not installed (pip install -r launch/requirements/bench.txt)")
            names.remove(name)
    for size in sizes:
        compare(names, size, repeats=arguments.repeats, threads=arguments.threads)


if __name__ == "__main__":
    main()
