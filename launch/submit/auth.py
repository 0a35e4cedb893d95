"""Ray's token, switched on where there is one. Must run before Ray is first imported."""

from __future__ import annotations

import os
from pathlib import Path

_MODE = "RAY_AUTH_MODE"


def use_token_if_any() -> None:
    """Send a token to the cluster if this user has one and has not said otherwise.

    It is Ray that reads and sends it. Clusters want one by default, and Ray's own client for jobs sends one
    only where RAY_AUTH_MODE says so.
    """
    if _MODE in os.environ:
        return
    file = Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or file.is_file():
        os.environ[_MODE] = "token"
