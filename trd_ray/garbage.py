"""Python's garbage collector in a driver that holds many long-lived objects."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# A trajectory makes some 300 objects that the collector counts: at Python's 700 it runs twice for each.
_THRESHOLDS = (10_000, 10, 10)


@contextmanager
def few_collections() -> Iterator[None]:
    """Spare the collector what is there already, and let it run less often, while the block runs.

    Imported libraries are some hundred thousand objects that never become garbage. Looking through them
    again and again took a third of the driver's time, and each full pass held up the event loop.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
