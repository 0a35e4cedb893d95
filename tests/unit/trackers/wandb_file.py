"""A reader of the files that W&B writes offline."""

from __future__ import annotations

import struct
import time
from pathlib import Path

_WRITTEN_WITHIN_S = 60.0


def wandb_records(path: Path) -> list:
    """Records of the file that `wandb sync` sends: a LevelDB log of protocol buffers behind 7 bytes.

    wandb has no reader in Python; what a record means is its own definition.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    records, parts, at = [], b"", 7
    while at + 7 <= len(data):
        left_in_block = 32768 - at % 32768
        if left_in_block < 7:  # no header fits: the block is filled up
            at += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(parts))
            parts = b""
    return records


def ended_records(path: Path) -> list:
    """As `wandb_records`, once the end of the run is in the file: a process of W&B's own writes it."""
    deadline = time.monotonic() + _WRITTEN_WITHIN_S
    while True:
        records = wandb_records(path)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < deadline, f"{path} has no end after {_WRITTEN_WITHIN_S} s"
        time.sleep(0.1)
