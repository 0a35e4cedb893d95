"""The tokenizer that teacher and student share.

One token a printable ASCII character and newline, and one for each word of the task's templates,
with and without a space before it, so that prompts are short. Any text over printable ASCII and
newline comes back unchanged from `decode(encode(text))`.
"""

from __future__ import annotations

import re
import string

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD_TOKEN = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
UNKNOWN_TOKEN = "<|unknown|>"

MAX_CONTEXT = 512
"""Tokens of prompt and response together."""

_WORDS = (
    "Problem", "Solve", "step", "by", "Reference", "Initial", "solution", "Keep", "correct", "steps",
    "fix", "errors", "agree", "with", "the", "reference", "Write", "only", "rewritten",
    "user", "assistant", "system",
)  # fmt: skip
_CHARACTERS = "\n" + string.ascii_letters + string.digits + string.punctuation + " "

# `enable_thinking` is accepted by being ignored: there is no thinking block to turn on or off.
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; nothing in it is learned, so every call gives the same one."""
    words = sorted({variant for word in _WORDS for variant in (word, f" {word}")}, key=lambda w: (-len(w), w))
    tokens = [PAD_TOKEN, TURN_START, TURN_END, UNKNOWN_TOKEN, *_CHARACTERS, *words]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN_TOKEN))
    # Longest words first: the regular expression takes the first alternative that fits.
    pattern = "|".join(re.escape(word) for word in words) + r"|[\s\S]"
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        eos_token=TURN_END,
        unk_token=UNKNOWN_TOKEN,
        additional_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_CONTEXT,
        padding_side="left",
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer
