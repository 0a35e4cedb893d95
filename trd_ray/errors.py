"""Every error that trd-ray raises on purpose.

One root, so that a caller can tell a broken contract from a bug. Each class takes one positional
message (Ray loses the type of an exception that needs more), and each message answers five
questions: what is wrong, where, what was found, what was expected, and what to do.
"""

from __future__ import annotations


class TrdRayError(Exception):
    """Root of all errors raised by trd-ray."""


class ConfigError(TrdRayError, ValueError):
    """The configuration is invalid. Raised before any process is started; exit code 2."""


class DataError(TrdRayError, ValueError):
    """A data file or one of its rows is invalid. Raised before any process is started."""


class ModelError(TrdRayError, ValueError):
    """A model folder cannot be used: no weights, another tokenizer, a wrong architecture."""


class MissingDependencyError(TrdRayError, ImportError):
    """A package that the configuration needs is not installed."""


class PlacementError(TrdRayError, RuntimeError):
    """The cluster cannot hold the actors that the configuration asks for."""


class ActorTimeoutError(TrdRayError, TimeoutError):
    """A remote call took longer than its limit. Names the actor, the call and the elapsed time."""


class WeightSyncError(TrdRayError, RuntimeError):
    """A push of weights did not arrive whole: wrong checksum, version, name or shape."""


class CheckpointError(TrdRayError, RuntimeError):
    """A checkpoint is missing, torn, or belongs to another configuration."""


class RunFailedError(TrdRayError, RuntimeError):
    """The run cannot go on. Exit code 1."""


class ActorLostError(RunFailedError):
    """An actor died, or is to be treated as if it had. Names the actor and the call."""


class LearnerLostError(RunFailedError):
    """A learner rank died, hangs or raised what it should not: the group must be started anew."""


class ClusterError(TrdRayError, ConnectionError):
    """A cluster's job API does not answer, or answers with an error."""


class DiskError(RunFailedError):
    """A file of the run cannot be written."""


class DiskRefusedError(DiskError):
    """There is no room, or no right to write: whatever else is to be written there is refused as well."""


def describe(what: str, *, where: str, got: object, expected: str, remedy: str) -> str:
    """Format the five answers that every message gives, one to a line."""
    return f"{what}\n  where:    {where}\n  got:      {got}\n  expected: {expected}\n  remedy:   {remedy}"


_WHERE, _GOT = "\n  where:    ", "\n  got:      "
_EXPECTED, _REMEDY = "\n  expected: ", "\n  remedy:   "


def place_of(message: str) -> str:
    """The first line of `where:` in a message of `describe`; empty if it is none."""
    return message.partition(_WHERE)[2].partition("\n")[0]


def expectation_of(message: str) -> str:
    """The answer to `expected:` in a message of `describe`, on one line; empty if it is none."""
    return " ".join(message.partition(_EXPECTED)[2].partition(_REMEDY)[0].split())


def with_place(message: str, where: str) -> str:
    """A message of `describe` with another answer to `where:`."""
    what, _, rest = message.partition(_WHERE)
    return f"{what}{_WHERE}{where}{_GOT}{rest.partition(_GOT)[2]}"


def unwrapped(error: BaseException) -> BaseException:
    """What was raised: of an error of another process, which comes with that process's stack as its message,
    the one that is in it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def brief(error: BaseException) -> str:
    """One line for a log: what is wrong, where, and what was found there; all of it comes with the error, if
    it ends the run.

    >>> brief(RunFailedError(describe("no answer", where="a.b", got="silence", expected="c", remedy="d")))
    'no answer: a.b: silence'
    """
    inner = unwrapped(error)
    what, _, rest = (str(inner) or repr(inner)).partition(_WHERE)
    where, _, got = rest.partition(_GOT)
    return ": ".join(part.splitlines()[0] for part in (what, where, got) if part)
