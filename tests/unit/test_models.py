"""Model folders: facts from headers, the head alone, and errors that name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import make_tiny_model, make_tiny_qwen3, make_tiny_tokenizer
from trd_ray.errors import ModelError
from trd_ray.losses.objective import LogitTransform
from trd_ray.model_files import model_facts, resolve_model
from trd_ray.models import load_output_head, load_student, load_tokenizer, logit_transform, shared_vocab_size


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen3(tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen3(
        tmp_path_factory.mktemp("untied"), tie_word_embeddings=False, dtype="bfloat16", seed=1
    )


@pytest.fixture
def copy_of(tied: Path, tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in tied.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def edit_config(path: Path, **values: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_facts_agree_with_the_loaded_model(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    facts = model_facts(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    assert facts.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert facts.num_bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert (facts.architecture, facts.vocab_size, facts.hidden_width) == ("Qwen3ForCausalLM", 128, 64)
    assert (facts.num_layers, facts.context_length) == (2, 2048)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_the_head_alone_is_the_head_of_the_model(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    head = load_output_head(path, torch.float32)
    assert torch.equal(head, load_student(path, torch.float32).get_output_embeddings().weight)


def test_sharded_weights(tied: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tied, dtype="auto")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert model_facts(tmp_path / "sharded").num_parameters == model_facts(tied).num_parameters
    assert torch.equal(
        load_output_head(tmp_path / "sharded", torch.float32), load_output_head(tied, torch.float32)
    )


def test_student_is_loaded_in_the_format_asked_for(untied: Path) -> None:
    model = load_student(untied, torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_resolve_model(tied: Path) -> None:
    assert resolve_model(str(tied)) == tied
    with pytest.raises(ModelError, match=r"testbed:student or testbed:teacher"):
        resolve_model("testbed:other")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "config.json").unlink(), "No config.json"),
        (lambda path: (path / "config.json").write_text("{"), "Unreadable config.json"),
        (lambda path: (path / "model.safetensors").unlink(), "No weights"),
        (lambda path: (path / "model.safetensors").write_bytes(b""), "No weights"),
    ],
)
def test_incomplete_folders_are_refused(damage, message: str, copy_of: Path) -> None:
    damage(copy_of)
    for use in (lambda: resolve_model(str(copy_of)), lambda: load_student(copy_of, torch.float32)):
        with pytest.raises(ModelError, match=message) as caught:
            use()
        assert str(copy_of) in str(caught.value)


def test_damaged_weights_are_refused(copy_of: Path) -> None:
    (copy_of / "model.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0junk!junk!")
    with pytest.raises(ModelError, match="Damaged weights"):
        model_facts(copy_of)


def test_missing_folder_and_tokenizer_are_refused(copy_of: Path) -> None:
    with pytest.raises(ModelError, match="No model folder"):
        resolve_model(str(copy_of / "missing"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy_of / name).unlink()
    with pytest.raises(ModelError, match="No tokenizer"):
        load_tokenizer(copy_of)


TRANSFORMED = [
    ("gemma2", {"final_logit_softcapping": 1.5}, LogitTransform(softcap=1.5)),
    ("gemma2", {"final_logit_softcapping": None}, LogitTransform()),
    ("gemma3_text", {"final_logit_softcapping": 2.0}, LogitTransform(softcap=2.0)),
    ("cohere", {"logit_scale": 0.25}, LogitTransform(scale=0.25)),
    ("cohere2", {"logit_scale": 2.0}, LogitTransform(scale=2.0)),
    ("granite", {"logits_scaling": 4.0}, LogitTransform(scale=0.25)),
]


@pytest.mark.parametrize(("kind", "options", "expected"), TRANSFORMED)
def test_logits_are_made_as_transformers_makes_them(
    kind: str, options: dict[str, float | None], expected: LogitTransform, tmp_path: Path
) -> None:
    path = make_tiny_model(tmp_path, kind, **options)
    transform = logit_transform(path)
    assert transform == expected
    model = load_student(path, torch.float32)
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        logits = model(tokens).logits[0]
        hidden = model.get_decoder()(input_ids=tokens).last_hidden_state[0]
    plain = hidden @ load_output_head(path, torch.float32).T
    made = transform.scale * plain
    if transform.softcap is not None:
        made = transform.softcap * torch.tanh(made / transform.softcap)
    torch.testing.assert_close(made, logits, rtol=1e-5, atol=1e-5)
    if expected != LogitTransform():
        assert not torch.allclose(plain, logits, rtol=1e-2)


def test_where_the_file_says_nothing_the_architecture_s_default_holds(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, "cohere")
    config = json.loads((path / "config.json").read_text())
    config.pop("logit_scale")
    (path / "config.json").write_text(json.dumps(config))
    assert logit_transform(path) == LogitTransform(scale=0.0625)


@pytest.mark.parametrize(
    ("key", "value"), [("final_logit_softcapping", 30.0), ("logits_scaling", 8.0), ("logit_scale", 0.5)]
)
def test_a_key_of_another_architecture_is_refused(copy_of: Path, key: str, value: float) -> None:
    edit_config(copy_of, **{key: value})
    for use in (load_student, load_output_head):
        with pytest.raises(ModelError, match=rf"{key} = {value} in config.json of a qwen3 model"):
            use(copy_of, torch.float32)


def test_shared_tokenizer(tied: Path, untied: Path) -> None:
    assert shared_vocab_size(tied, untied) == 128


def test_a_padded_embedding_shares_the_tokenizer(tied: Path, copy_of: Path) -> None:
    edit_config(copy_of, vocab_size=192)
    assert shared_vocab_size(tied, copy_of) == 128
    edit_config(copy_of, vocab_size=100)
    with pytest.raises(ModelError, match="100 rows in the embedding"):
        shared_vocab_size(tied, copy_of)


def test_other_chat_template_and_padding_are_allowed(tied: Path, copy_of: Path) -> None:
    (copy_of / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = json.loads((copy_of / "tokenizer_config.json").read_text())
    tokenizer["pad_token"] = "<|im_start|>"
    (copy_of / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert load_tokenizer(copy_of).pad_token_id != load_tokenizer(tied).pad_token_id
    assert shared_vocab_size(tied, copy_of) == 128


def test_different_tokenizers_are_refused_with_both_names_and_the_first_token(
    tied: Path, copy_of: Path
) -> None:
    tokenizer = json.loads((copy_of / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["<other>"] = vocab.pop("A")
    (copy_of / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError) as caught:
        shared_vocab_size(tied, copy_of)
    message = str(caught.value)
    assert str(tied) in message
    assert str(copy_of) in message
    first = load_tokenizer(tied).get_vocab()["A"]
    assert f"id {first}: ['A'] (student), ['<other>'] (teacher)" in message


def test_longer_tokenizer_is_refused(tied: Path, copy_of: Path) -> None:
    make_tiny_tokenizer(copy_of, vocab_size=130)
    edit_config(copy_of, vocab_size=130)
    with pytest.raises(ModelError, match=r"id 128: no token \(student\), \['<unused_28>'\] \(teacher\)"):
        shared_vocab_size(tied, copy_of)


def test_another_end_token_is_refused(tied: Path, copy_of: Path) -> None:
    tokenizer = json.loads((copy_of / "tokenizer_config.json").read_text())
    tokenizer["eos_token"] = "<pad>"
    (copy_of / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"end token '<\|im_end\|>' \(student\) and '<pad>' \(teacher\)"):
        shared_vocab_size(tied, copy_of)
