"""The bytes of a checkpoint: a preamble, a header of JSON, arrays. Never pickle.

::

    0    8  magic
    8    4  format of this framing       (the preamble is the same in every format, so that any version can tell)
    12   4  schema: what the fields and arrays mean, the layout of the session table included
    16   8  bytes of the header
    24   8  bytes of everything
    32   4  CRC-32C of the header and of the zeros behind it
    36  24  zeros
    60   4  CRC-32C of the 60 bytes before
    64      header, zeros up to a multiple of 64; then each array (little-endian), and zeros up to a multiple of 64

The header is ``{"fields": ..., "arrays": [{name, dtype, size, offset, crc32c}, ...]}``: size in bytes, offset from the first
array on, the checksum over the array and the zeros behind it. So every byte is under one checksum, and CRC-32C finds every
change of up to 32 neighbouring bits; a cut changes the length, which is written in the preamble.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from crc32c import crc32c

from keystone.errors import CheckpointDamaged, UsageError
from keystone.store import Buffer

Arrays = dict[str, npt.NDArray[Any]]
ReadRange = Callable[[int, int], memoryview]

MAGIC: Final = b"KEYSTCKP"
FORMAT: Final = 1
ALIGNMENT: Final = 64  # a cache line
HEAD_BYTES: Final = 16 << 10  # read at once: preamble, and a header of ~80 files; a longer one takes a second read
DTYPES: Final = frozenset({"|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f8"})
_CHECKED: Final = struct.Struct("<8sIIQQI24x")
_CRC: Final = struct.Struct("<I")
PREAMBLE_BYTES: Final = _CHECKED.size + _CRC.size


class _ArrayEntry(NamedTuple):
    name: str
    dtype: str
    size: int
    offset: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the arrays, checked. ``size``: bytes of everything; ``arrays_at``: where the first array begins."""

    schema: int
    fields: dict[str, Any]
    entries: tuple[_ArrayEntry, ...]
    size: int
    arrays_at: int


def encode(fields: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], *, schema: int) -> list[Buffer]:
    """The parts of a checkpoint, one after the other; those of arrays are views, so they must not change until written."""
    parts: list[Buffer] = []
    entries: list[dict[str, Any]] = []
    offset = 0
    for name, array in arrays.items():
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        if array.ndim != 1 or little.dtype.str not in DTYPES:
            raise ValueError(f"{name}: {array.ndim} dimensions of {array.dtype}: one of numbers is kept")
        content, padding = little.view(np.uint8).data, bytes(-little.nbytes % ALIGNMENT)
        entries.append({"name": name, "dtype": little.dtype.str, "size": little.nbytes, "offset": offset, "crc32c": crc32c(padding, crc32c(content))})
        parts += content, padding
        offset += little.nbytes + len(padding)
    header = orjson.dumps({"fields": fields, "arrays": entries})
    padded = header + bytes(-len(header) % ALIGNMENT)
    checked = _CHECKED.pack(MAGIC, FORMAT, schema, len(header), PREAMBLE_BYTES + len(padded) + offset, crc32c(padded))
    return [checked + _CRC.pack(crc32c(checked)) + padded, *parts]


def decode_head(read: ReadRange) -> Head:
    """Preamble and header by ranges, without the arrays.

    Raises ``CheckpointDamaged``, also where the object's length is not the one that was written; ``UsageError`` for another format.
    """
    first = read(0, HEAD_BYTES)
    schema, header_bytes, size, header_crc = _preamble(first)
    arrays_at = _aligned(PREAMBLE_BYTES + header_bytes)
    if arrays_at > size:
        raise CheckpointDamaged("its header is longer than all of it")
    padded = first[PREAMBLE_BYTES:arrays_at] if arrays_at <= len(first) else read(PREAMBLE_BYTES, arrays_at - PREAMBLE_BYTES)
    if len(padded) != arrays_at - PREAMBLE_BYTES or crc32c(padded) != header_crc:
        raise CheckpointDamaged("its header does not match its checksum")
    if len(read(size - 1, 2)) != 1:
        raise CheckpointDamaged(f"it is not {size:,} bytes long, as it says")
    fields, entries = _header(padded[:header_bytes], size - arrays_at)
    return Head(schema, fields, entries, size, arrays_at)


def decode(content: memoryview) -> tuple[Head, Arrays]:
    """All of a checkpoint, checked. The arrays are read-only views of ``content``. Raises as ``decode_head`` does."""
    content = content.toreadonly()
    head = decode_head(lambda start, size: content[start : start + size])
    arrays: Arrays = {}
    for name, dtype, size, offset, crc in head.entries:
        start = head.arrays_at + offset
        if crc32c(content[start : start + _aligned(size)]) != crc:
            raise CheckpointDamaged(f"its array {name} does not match its checksum")
        arrays[name] = np.frombuffer(content[start : start + size], np.uint8).view(dtype) if size else np.zeros(0, dtype)
    return head, arrays


def _preamble(first: memoryview) -> tuple[int, int, int, int]:
    """(schema, header bytes, bytes of everything, checksum of the header)."""
    if len(first) < PREAMBLE_BYTES or bytes(first[: len(MAGIC)]) != MAGIC:
        raise CheckpointDamaged("it does not begin as a checkpoint does")
    if crc32c(first[: _CHECKED.size]) != _CRC.unpack_from(first, _CHECKED.size)[0]:
        raise CheckpointDamaged("its first 64 bytes do not match their checksum")
    _, found, schema, header_bytes, size, header_crc = _CHECKED.unpack_from(first)
    if found > FORMAT:
        raise UsageError(f"it was written by a newer version (format {found}, this one reads {FORMAT}): use that version, or another directory of checkpoints")
    if found < FORMAT:
        raise UsageError(f"it was written by an older version (format {found}, this one reads {FORMAT}): use that version, or another directory of checkpoints")
    return schema, header_bytes, size, header_crc


def _header(text: memoryview, room: int) -> tuple[dict[str, Any], tuple[_ArrayEntry, ...]]:
    """Fields and entries. That they fit the bytes behind is checked too: kernels trust what they are given."""
    try:
        tree = orjson.loads(text)
        fields = tree["fields"]
        entries = tuple(_ArrayEntry(**entry) for entry in tree["arrays"])
        at = 0
        for entry in entries:
            if entry.dtype not in DTYPES or entry.offset != at or entry.size < 0 or entry.size % np.dtype(entry.dtype).itemsize:
                raise CheckpointDamaged(f"its array {entry.name} is not where it should be")
            at += _aligned(entry.size)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointDamaged(f"its header is not understood: {error}") from error
    if at != room or not isinstance(fields, dict):
        raise CheckpointDamaged("its header does not tell of all its bytes")
    return fields, entries


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
