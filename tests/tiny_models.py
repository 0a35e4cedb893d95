"""Random models and tokenizers that are small enough to build inside a test."""

from __future__ import annotations

from pathlib import Path

PAD_TOKEN = "<pad>"
START_TOKEN = "<|im_start|>"
END_TOKEN = "<|im_end|>"
UNKNOWN_TOKEN = "<unk>"
SPECIAL_TOKENS = (PAD_TOKEN, START_TOKEN, END_TOKEN, UNKNOWN_TOKEN)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def make_tiny_tokenizer(path: str | Path, *, vocab_size: int = 128) -> None:
    """Write a tokenizer with one token for each printable ASCII character and the newline.

    The special tokens come first (`<pad>` is 0, `<|im_end|>` ends an answer); ids up to
    `vocab_size` are filled with unused words, so that every id the model can emit decodes.

    Raises:
        ValueError: `vocab_size` does not hold the characters.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = ["\n", *(chr(code) for code in range(32, 127))]
    words = [*SPECIAL_TOKENS, *characters]
    if vocab_size < len(words):
        raise ValueError(f"make_tiny_tokenizer: vocab_size is {vocab_size}; expected at least {len(words)}")
    words += [f"<unused_{index}>" for index in range(vocab_size - len(words))]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN_TOKEN)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=END_TOKEN,
        unk_token=UNKNOWN_TOKEN,
        additional_special_tokens=[START_TOKEN],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(path))


def make_tiny_qwen3(
    path: str | Path,
    *,
    seed: int = 0,
    vocab_size: int = 128,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    intermediate_size: int = 128,
    tie_word_embeddings: bool = True,
    dtype: str = "float32",
    weight_scale: float = 0.1,
) -> Path:
    """Write a random Qwen3 model and its tokenizer to `path`, as `from_pretrained` reads them.

    Args:
        seed: the same seed gives the same weights.
        weight_scale: standard deviation of the weights; 0.1 gives distributions that are far
            enough from uniform to tell two models apart.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=2048,
        tie_word_embeddings=tie_word_embeddings,
        initializer_range=weight_scale,
        pad_token_id=SPECIAL_TOKENS.index(PAD_TOKEN),
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index(END_TOKEN),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(str(path))
    make_tiny_tokenizer(path, vocab_size=vocab_size)
    return path


def make_tiny_model(path: str | Path, kind: str, *, seed: int = 0, **options: object) -> Path:
    """Write a random model of another architecture, as transformers' own configuration makes it.

    Args:
        kind: transformers' model type, for example `gemma2`.
        options: fields of its configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    sizes = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
        "pad_token_id": SPECIAL_TOKENS.index(PAD_TOKEN),
        "bos_token_id": None,
        "eos_token_id": SPECIAL_TOKENS.index(END_TOKEN),
    }
    config = AutoConfig.for_model(kind, **{**sizes, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(str(path))
    make_tiny_tokenizer(path)
    return path
