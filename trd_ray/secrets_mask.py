"""Taking out of a text what may be a secret, before it is shown where others read it."""

from __future__ import annotations

import re
from collections.abc import Mapping

MASK = "***"

_USER_OF_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@]*@")
# The signature of a pre-signed URL lets anyone in who has it.
_QUERY_VALUE = re.compile(r"(?P<key>[?&][^=&\s#]+=)[^&\s#]+")
_TOKEN = re.compile(
    r"\b(?:hf_|sk-|pk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AKIA|ASIA|AIza|ya29\.|eyJ|wandb_v\d_|dapi)"
    r"[A-Za-z0-9_.\-]{8,}"
)
_KEY_LIKE = re.compile(r"(?<![A-Za-z0-9])(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{32,}(?![A-Za-z0-9])")
_SECRET_NAME = re.compile(
    r"(?:^|[._-])(?:api_?key|access_?key|secret|passw(?:or)?d|credentials?|auth_?token|token)$", re.IGNORECASE
)


def has_credentials(url: str) -> bool:
    """Whether a URL carries a user or a password."""
    return _USER_OF_URL.search(url) is not None


def mask_text(text: str) -> str:
    """The text with `***` for users of URLs, values of their queries, and what looks like a token or a key.

    >>> mask_text("s3://me:secret@host/rows.jsonl?signature=abc")
    's3://***@host/rows.jsonl?signature=***'
    """
    text = _USER_OF_URL.sub(rf"\g<scheme>{MASK}@", text)
    if "://" in text:
        text = _QUERY_VALUE.sub(rf"\g<key>{MASK}", text)
    return _KEY_LIKE.sub(MASK, _TOKEN.sub(MASK, text))


def mask_tree(value: object, *, name: str = "") -> object:
    """The same for every text of a tree of mappings and lists; one under a name like `api_key` goes whole."""
    if isinstance(value, Mapping):
        return {key: mask_tree(item, name=str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_tree(item, name=name) for item in value]
    if not isinstance(value, str):
        return value
    return MASK if value and _SECRET_NAME.search(name) else mask_text(value)
