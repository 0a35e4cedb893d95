"""The address of a cluster's job API, as the user gives it."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from trd_ray.errors import ConfigError, describe

_EXAMPLE = "http://HOST:8265, the address of Ray's dashboard"


def parse_address(text: str) -> str:
    """The address without a slash at its end. Raises `ConfigError` for what is none."""
    text = text.strip()
    if "://" not in text:
        raise _malformed(text, "no http:// or https:// in front", remedy=f"write http://{text or 'HOST'}"
                         + ("" if ":" in text else ":8265"))  # fmt: skip
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _malformed(_without_user(text), str(error), remedy="correct the host or the port") from error
    _check_parts(parts, port=port, shown=_without_user(text))
    return text.rstrip("/")


def _check_parts(parts: SplitResult, *, port: int | None, shown: str) -> None:
    if parts.scheme not in ("http", "https"):
        remedy = "give the dashboard's address, http://HOST:8265: jobs are sent to it and not to ray://"
        raise _malformed(shown, f"{parts.scheme}:// is not spoken by the job API", remedy=remedy)
    if not parts.hostname:
        raise _malformed(shown, "no host", remedy="name the host of the cluster's head")
    if parts.username is not None or parts.password is not None:
        remedy = "take it out: an address is shown in messages; Ray's token goes into RAY_AUTH_TOKEN"
        raise _malformed(shown, "a user name or password in it", remedy=remedy)
    if parts.query or parts.fragment:
        raise _malformed(shown, "something after ? or #", remedy="leave that out")
    if port is None and parts.scheme == "http":
        raise _malformed(shown, "no port", remedy=f"write http://{parts.hostname}:8265, if that is the port")
    if port == 0:
        raise _malformed(shown, "port 0", remedy="give the dashboard's port, 8265 if it was not chosen")


def _without_user(text: str) -> str:
    """A password must not reach a message."""
    scheme, separator, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _malformed(text: str, got: str, *, remedy: str) -> ConfigError:
    return ConfigError(
        describe(
            "malformed address of a cluster",
            where="--address",
            got=f"{text or 'nothing'} ({got})",
            expected=_EXAMPLE,
            remedy=remedy,
        )
    )
