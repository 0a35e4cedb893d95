"""What each token id says, so that the page can colour a text token by token.

Read from files of the run alone: the tokenizer of its newest checkpoint, else the student's own folder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from trd_ray.run_folder import RunFolder

log = logging.getLogger(__name__)

_FILE = "tokenizer.json"
_HF_FOLDER = "hf"
"""In a checkpoint, as `learner_checkpoint.HF_FOLDER`; that module loads torch, and a report need not."""


def find_tokenizer(folder: RunFolder, options: Mapping[str, str]) -> Tokenizer | None:
    """None if the run has no checkpoint yet and its student is not a local folder."""
    places = [c.path / _HF_FOLDER for c in reversed(folder.complete_checkpoints())]
    if options.get("student.model"):
        places.append(Path(options["student.model"]).expanduser())
    for place in places:
        if (place / _FILE).is_file():
            # The library raises a bare Exception for a file that it cannot read.
            try:
                return Tokenizer.from_file(str(place / _FILE))
            except Exception as error:  # noqa: BLE001
                log.warning("%s cannot be read, so tokens are shown as numbers: %s", place / _FILE, error)
    return None


def token_pieces(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    """The text that each id adds in the middle of a text; "" for special tokens, which texts leave out.

    A token that is a part of a character gives U+FFFD. Ids that the tokenizer does not know give "".
    """
    # Decoded twice in a row: a decoder that strips the first space of a text strips only that of the first.
    once = tokenizer.decode_batch([[i] for i in token_ids], skip_special_tokens=True)
    twice = tokenizer.decode_batch([[i, i] for i in token_ids], skip_special_tokens=True)
    return [both[len(one) :] for one, both in zip(once, twice, strict=True)]
