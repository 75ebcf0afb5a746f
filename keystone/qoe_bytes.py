"""A partition's share of some windows as bytes: to be sent, and kept in checkpoints. Never pickle.

zstd over: bytes of the header (4, little endian), the header as JSON (dimensions, keys, shapes), then the arrays one after the other.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import orjson
import zstandard

from keystone.errors import CheckpointDamaged
from keystone.qoe import CohortPartial

FORMAT: Final = 1
LEVEL: Final = 1  # 110 rows of 17 numbers: 15 kB to ~2 in 60 us
SIZE_MAX: Final = 256 << 20  # of one, unpacked: rows of all cohorts there can be, x 152 B
_ARRAYS: Final = {"window_start_ms": np.int64, "cohorts": np.int32, "sums": np.int64, "bins": np.int64}


def to_bytes(partial: CohortPartial) -> bytes:
    """All of a partial, as ``from_bytes`` takes it."""
    arrays = [np.ascontiguousarray(getattr(partial, name), dtype) for name, dtype in _ARRAYS.items()]
    header = orjson.dumps({
        "format": FORMAT, "partition": partial.partition, "dimensions": partial.dimensions, "keys": partial.keys,
        "has_log_time": partial.has_log_time, "shapes": [array.shape for array in arrays],
    })  # fmt: skip
    parts = [len(header).to_bytes(4, "little"), header, *(array.tobytes() for array in arrays)]
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(b"".join(parts))


def from_bytes(content: bytes) -> CohortPartial:
    """Raises ``CheckpointDamaged`` for anything that ``to_bytes`` did not make."""
    try:
        unpacked = zstandard.ZstdDecompressor().decompress(content, max_output_size=SIZE_MAX)
        end = 4 + int.from_bytes(unpacked[:4], "little")
        header = orjson.loads(unpacked[4:end])
        if header["format"] != FORMAT:
            raise CheckpointDamaged(f"its cohorts are of format {header['format']}, and this version reads {FORMAT}")
        return _partial(header, unpacked, end)
    except (zstandard.ZstdError, ValueError, KeyError, TypeError) as error:
        raise CheckpointDamaged(f"its cohorts cannot be read: {error}") from error


def _partial(header: dict[str, Any], unpacked: bytes, at: int) -> CohortPartial:
    arrays: dict[str, Any] = {}
    for (name, dtype), shape in zip(_ARRAYS.items(), header["shapes"], strict=True):
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(unpacked, dtype, count, at).reshape(shape)
        at += count * np.dtype(dtype).itemsize
    if at != len(unpacked):
        raise ValueError(f"{len(unpacked)} bytes where {at} belong")
    keys = tuple(tuple(key) for key in header["keys"])
    return CohortPartial(header["partition"], tuple(header["dimensions"]), keys, has_log_time=header["has_log_time"], **arrays)
