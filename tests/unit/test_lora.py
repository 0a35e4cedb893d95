"""Adapters: what is trained, what leaves the learner, and what peft itself says of both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.tiny_models import make_tiny_qwen3
from trd_ray.config import LoraConfig
from trd_ray.errors import CheckpointError, ConfigError
from trd_ray.lora import Adapters, add_adapters, named_weights
from trd_ray.models import load_student

TOKENS = torch.arange(5, 30)[None]
CONFIG = LoraConfig(rank=4, alpha=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen3(tmp_path_factory.mktemp("lora"))


def adapted(folder: Path, dtype: torch.dtype = torch.float32, config: LoraConfig = CONFIG) -> Adapters:
    """Adapters far from their first values, at which they change nothing."""
    torch.manual_seed(0)
    adapters = add_adapters(load_student(folder, dtype), config, base_model=folder)
    with torch.no_grad():
        for _, parameter in adapters.named():
            parameter.normal_(std=0.1)
    return adapters


def test_only_adapters_of_the_linear_layers_are_trained(folder: Path) -> None:
    adapters = adapted(folder)
    trained = {name for name, p in adapters.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in adapters.named()}
    # Two layers of seven matrices, A and B of each; not the head.
    assert len(trained) == 2 * 7 * 2
    assert not any("lm_head" in name or "embed" in name for name in trained)


def test_adapters_stay_float32_on_a_bfloat16_model(folder: Path) -> None:
    adapters = adapted(folder, torch.bfloat16)
    assert {parameter.dtype for _, parameter in adapters.named()} == {torch.float32}
    assert {weight.base.dtype for weight in named_weights(adapters.model)} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_are_peft_s_own_under_the_plain_names(folder: Path, dtype: torch.dtype) -> None:
    adapters = adapted(folder, dtype)
    plain = [name for name, _ in load_student(folder, dtype).named_parameters()]
    merged = {weight.name: weight.merged().clone() for weight in named_weights(adapters.model)}
    assert list(merged) == plain
    expected = adapters._peft_model.merge_and_unload()
    assert [name for name, _ in expected.named_parameters()] == plain
    for name, tensor in expected.named_parameters():
        assert torch.equal(merged[name], tensor), name


@torch.no_grad()
def test_without_its_adapters_the_model_is_the_first_one(folder: Path) -> None:
    first, adapters = load_student(folder, torch.float32), adapted(folder)
    with adapters.off():
        assert torch.equal(adapters.model(TOKENS).logits, first(TOKENS).logits)
    assert not torch.allclose(adapters.model(TOKENS).logits, first(TOKENS).logits, atol=1e-2)
    assert all(parameter.requires_grad for _, parameter in adapters.named())


def test_peft_reads_saved_adapters_and_they_load_again(folder: Path, tmp_path: Path) -> None:
    adapters = adapted(folder)
    adapters.save(tmp_path, {name: parameter.detach() for name, parameter in adapters.named()})
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    with torch.no_grad():
        assert torch.equal(read(TOKENS).logits, adapters.model(TOKENS).logits)
    again = add_adapters(load_student(folder, torch.float32), CONFIG, base_model=folder)
    again.load(tmp_path)
    for (_, left), (_, right) in zip(adapters.named(), again.named(), strict=True):
        assert torch.equal(left, right)
    fewer = LoraConfig(rank=4, target="q_proj")
    other = add_adapters(load_student(folder, torch.float32), fewer, base_model=folder)
    with pytest.raises(CheckpointError, match="holds other adapters"):
        other.load(tmp_path)


def test_a_gradient_step_is_that_of_plain_peft(folder: Path) -> None:
    def step(model: torch.nn.Module) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()

    torch.manual_seed(3)
    ours = add_adapters(load_student(folder, torch.float32), CONFIG, base_model=folder).model
    torch.manual_seed(3)
    config = PeftConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = get_peft_model(load_student(folder, torch.float32), config)
    step(ours)
    step(theirs)
    merged = {weight.name: weight.merged() for weight in named_weights(ours)}
    first = dict(load_student(folder, torch.float32).named_parameters())
    for name, tensor in theirs.merge_and_unload().named_parameters():
        assert torch.equal(merged[name], tensor)
        assert torch.equal(tensor, first[name]) == ("proj" not in name)


@pytest.mark.parametrize("target", ["lm_head", "q_proj,embed_tokens", "nothing_like_it"])
def test_targets_that_are_not_inner_linear_layers_are_refused(folder: Path, target: str) -> None:
    with pytest.raises(ConfigError, match=r"learner\.lora\.target"):
        add_adapters(
            load_student(folder, torch.float32), LoraConfig(rank=2, target=target), base_model=folder
        )
