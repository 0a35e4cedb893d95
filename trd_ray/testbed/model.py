"""The architecture of both testbed models, and how they are written to and read from a folder."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from trd_ray.testbed.tokenizer import MAX_CONTEXT, build_tokenizer


def new_model(*, seed: int) -> Qwen3ForCausalLM:
    """A model with random weights (about 0.8 million, float32) that depend on `seed` alone."""
    tokenizer = build_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def save_model(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Write a model folder: bfloat16 weights, configuration and tokenizer. `model` is not changed."""
    tokenizer = build_tokenizer()
    shipped = copy.deepcopy(model).bfloat16()
    shipped.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    shipped.save_pretrained(folder)
    # Written for its owner only, which a package must not be.
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)


def load_model(folder: Path) -> Qwen3ForCausalLM:
    """Read a model folder in float32, in evaluation mode."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if not isinstance(model, Qwen3ForCausalLM):
        raise TypeError(f"load_model: {folder} holds a {type(model).__name__}; expected a Qwen3ForCausalLM")
    model.train(mode=False)
    return model
