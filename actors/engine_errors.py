"""What an engine's calls end with: errors that name the engine, the call, and the time that it took."""

from __future__ import annotations

from actors.engine_options import EngineOptions
from trd_ray.errors import ActorTimeoutError, TrdRayError, WeightSyncError, describe


def call_failed(
    options: EngineOptions, name: str, *, got: str, limit_s: float, elapsed_s: float
) -> TrdRayError:
    """Of a call about weights that a worker could not do, or waited in too long, by its own words."""
    if "timed out" in got.lower():
        return call_timed_out(options, name, got=got, limit_s=limit_s, elapsed_s=elapsed_s)
    return WeightSyncError(
        describe(
            "An engine could not follow a push of weights",
            where=_where(options, name, elapsed_s),
            got=got,
            expected="weights that fit the model, from a sender that is there",
            remedy="open the group again and repeat the push; restart the engine if it fails again",
        )
    )


def call_timed_out(
    options: EngineOptions, name: str, *, got: str, limit_s: float, elapsed_s: float
) -> ActorTimeoutError:
    return ActorTimeoutError(
        describe(
            "An engine's call took too long",
            where=_where(options, name, elapsed_s),
            got=got,
            expected=f"an answer within {limit_s} s",
            remedy="see whether the sender and all generators of the push are alive; "
            "raise the limit if the model is large",
        )
    )


def _where(options: EngineOptions, name: str, elapsed_s: float) -> str:
    return f"{options.name}.{name}, model {options.model}, after {elapsed_s:.1f} s"
