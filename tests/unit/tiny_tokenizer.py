"""A tokenizer with one token a character, which makes lengths easy to count by hand."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

START = "<|im_start|>"
END = "<|im_end|>"
_SPECIAL = ("<pad>", START, END, "<unk>")
_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    "{%- if not enable_thinking -%}{{- '<think></think>\\n' -}}{%- endif -%}{%- endif -%}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each printable ASCII character and newline, after the special tokens."""
    words = [*_SPECIAL, "\n", *(chr(code) for code in range(32, 127))]
    backend = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token=END,
        unk_token="<unk>",
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
