"""A partition's share of some windows as bytes: to be sent, and kept in checkpoints. Never pickle.

zstd over: bytes of the header (4, little endian), the header as JSON (dimensions, keys, shapes), then the arrays one after the other: the
sums, and of the bins a column each, the first three as differences from the row before, all as narrow as they can be.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import orjson
import zstandard

from keystone.errors import CheckpointDamaged
from keystone.events import I64
from keystone.qoe import CohortPartial
from keystone.qoe_bins import narrowed

FORMAT: Final = 2
LEVEL: Final = 1  # 110 rows of 17 numbers: 15 kB to ~2 in 60 us
SIZE_MAX: Final = 256 << 20  # of one, unpacked: rows of all cohorts there can be, x 152 B
_ARRAYS: Final = {"window_start_ms": np.int64, "cohorts": np.int32, "sums": np.int64}
_COUNT: Final = 3  # the column of the bins that is no difference


def to_bytes(partial: CohortPartial) -> bytes:
    """All of a partial, as ``from_bytes`` takes it."""
    arrays = [np.ascontiguousarray(getattr(partial, name), dtype) for name, dtype in _ARRAYS.items()]
    columns = [narrowed(column if at == _COUNT else np.diff(column, prepend=0)) for at, column in enumerate(partial.bins.T)]
    header = orjson.dumps({
        "format": FORMAT, "partition": partial.partition, "dimensions": partial.dimensions, "keys": partial.keys,
        "has_log_time": partial.has_log_time, "shapes": [array.shape for array in arrays],
        "bins": partial.bins.shape[0], "widths": [column.dtype.str[1:] for column in columns],
    })  # fmt: skip
    parts = [len(header).to_bytes(4, "little"), header, *(array.tobytes() for array in (*arrays, *columns))]
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(b"".join(parts))


def from_bytes(content: bytes) -> CohortPartial:
    """Raises ``CheckpointDamaged`` for anything that ``to_bytes`` did not make."""
    try:
        unpacked = zstandard.ZstdDecompressor().decompress(content, max_output_size=SIZE_MAX)
        end = 4 + int.from_bytes(unpacked[:4], "little")
        header = orjson.loads(unpacked[4:end])
        if header["format"] not in (1, FORMAT):
            raise CheckpointDamaged(f"its cohorts are of format {header['format']}, and this version reads up to {FORMAT}")
        return _partial(header, unpacked, end)
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointDamaged(f"its cohorts cannot be read: {error}") from error


def _partial(header: dict[str, Any], unpacked: bytes, at: int) -> CohortPartial:
    arrays: dict[str, Any] = {}
    for (name, dtype), shape in zip(_ARRAYS.items(), header["shapes"], strict=False):
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(unpacked, dtype, count, at).reshape(shape)
        at += count * np.dtype(dtype).itemsize
    bins, at = _bins_of(header, unpacked, at) if header["format"] == FORMAT else _wide_bins_of(header, unpacked, at)
    if at != len(unpacked):
        raise ValueError(f"{len(unpacked)} bytes where {at} belong")
    keys = tuple(tuple(key) for key in header["keys"])
    return CohortPartial(header["partition"], tuple(header["dimensions"]), keys, has_log_time=header["has_log_time"], bins=bins, **arrays)


def _bins_of(header: dict[str, Any], unpacked: bytes, at: int) -> tuple[I64, int]:
    """They, and where they end."""
    bins = np.zeros((_COUNT + 1, header["bins"]), np.int64).T
    for column, width in enumerate(header["widths"]):
        found = np.frombuffer(unpacked, np.dtype(f"<{width}"), bins.shape[0], at)
        bins[:, column] = found if column == _COUNT else np.cumsum(found, dtype=np.int64)
        at += found.nbytes
    return bins, at


def _wide_bins_of(header: dict[str, Any], unpacked: bytes, at: int) -> tuple[I64, int]:
    """Of format 1: int64, row after row."""
    bins = np.frombuffer(unpacked, np.int64, int(np.prod(header["shapes"][-1])), at).reshape(-1, _COUNT + 1)
    return bins, at + bins.nbytes
