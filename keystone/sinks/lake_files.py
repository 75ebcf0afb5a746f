"""Parquet's container: page headers, column chunks, row groups and the footer (Thrift's compact protocol).

The pages' bodies come from ``keystone.kernels.lake``. Every column chunk says codec ZSTD; whether a data page is worth
compressing is decided, and said in its header, page by page. https://parquet.apache.org/docs/file-format/ describes all of it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import zstandard

from keystone.events import I64, U8
from keystone.kernels import lake as kernel
from keystone.sinks.lake_schema import COLUMNS, DESCRIPTIONS, DESCRIPTIONS_KEY, STATISTICS

MAGIC: Final = b"PAR1"
ZSTD_LEVEL: Final = 1  # 3 costs a quarter more time for under 1% of size on this data
COMPRESS_MIN_BYTES: Final = 256  # a smaller body gains less than the call costs (5 us)
PAYS_BELOW: Final = 0.8  # compressed to raw: above it the reader's time is worth more than the bytes
OPEN_TRIES: Final = 10
TRY_AGAIN_PAGES: Final = 64  # a column that did not pay is tried again after so many pages

_TYPE: Final = {"bool": 0, "int32": 1, "int64": 2, "string": 6}
_ZSTD, _UTF8 = 6, 0
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12  # types of the compact protocol


# --- Thrift, compact protocol ---------------------------------------------------------------------------------------
def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(value: int) -> bytes:
    return varint((value << 1) ^ (value >> 63))


def binary(value: bytes) -> bytes:
    return varint(len(value)) + value


def struct(*fields: tuple[int, int, bytes]) -> bytes:
    """A struct of (id, type, encoded value), ids ascending, 15 apart at most."""
    out, last = bytearray(), 0
    for number, kind, value in fields:
        out.append((number - last) << 4 | kind)
        out += value
        last = number
    out.append(0)
    return bytes(out)


def sequence(kind: int, items: Iterable[bytes]) -> bytes:
    encoded = list(items)
    size = len(encoded)
    head = bytes([size << 4 | kind]) if size < 15 else bytes([0xF0 | kind]) + varint(size)
    return head + b"".join(encoded)


def _i32(number: int, value: int) -> tuple[int, int, bytes]:
    return number, _I32, integer(value)


def _i64(number: int, value: int) -> tuple[int, int, bytes]:
    return number, _I64, integer(value)


def data_page_header(rows: int, nulls: int, encoding: int, levels: int, raw_bytes: int, page_bytes: int) -> bytes:
    """Header of a version 2 data page whose values are compressed."""
    inner = struct(_i32(1, rows), _i32(2, nulls), _i32(3, rows), _i32(4, encoding), _i32(5, levels), _i32(6, 0), (7, 1, b""))
    return struct(_i32(1, kernel.DATA_PAGE_V2), _i32(2, raw_bytes), _i32(3, page_bytes), (8, _STRUCT, inner))


def dictionary_page_header(values: int, raw_bytes: int, page_bytes: int) -> bytes:
    inner = struct(_i32(1, values), _i32(2, kernel.PLAIN))
    return struct(_i32(1, 2), _i32(2, raw_bytes), _i32(3, page_bytes), (7, _STRUCT, inner))


def _schema() -> bytes:
    """Without field ids: a table numbers its columns as it likes, others' among them, and finds ours by name."""
    elements = [struct((4, _BINARY, binary(b"schema")), _i32(5, len(COLUMNS)))]
    for column in COLUMNS:
        fields = [_i32(1, _TYPE[column.type]), _i32(3, int(column.is_optional)), (4, _BINARY, binary(column.name.encode()))]
        if column.type == "string":
            fields.append(_i32(6, _UTF8))
        if column.type == "string":
            fields.append((10, _STRUCT, struct((1, _STRUCT, struct()))))
        elements.append(struct(*fields))
    return sequence(_STRUCT, elements)


_SCHEMA: Final = _schema()
_ORDERS: Final = sequence(_STRUCT, [struct((1, _STRUCT, struct()))] * len(COLUMNS))
_DESCRIBED: Final = sequence(_STRUCT, [struct((1, _BINARY, binary(DESCRIPTIONS_KEY.encode())), (2, _BINARY, binary(DESCRIPTIONS.encode())))])


@dataclass(slots=True)
class DictionaryPage:
    """The strings of a column's dictionary: a whole page, and its size before compression."""

    page: bytes
    raw_bytes: int


@dataclass(slots=True)
class _Chunk:
    """One column of the open row group."""

    pages: bytearray = field(default_factory=bytearray)
    raw_bytes: int = 0  # headers included, as the format counts
    present: int = 0
    encodings: set[int] = field(default_factory=set)  # of its data pages
    low: int = 1 << 62
    high: int = -(1 << 62)


class Compressor:
    """Compresses what pays; one thread."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True)
        self._skip = [0] * len(COLUMNS)  # pages of the column still to be left alone

    def dictionary_page(self, strings: pa.Array) -> DictionaryPage:
        """The dictionary page of an Arrow string array without nulls."""
        count = len(strings)
        raw = b""
        if count:
            _, offsets, data = strings.buffers()
            ends = np.frombuffer(offsets, np.int32).copy()  # kernels take writable arrays
            text = np.frombuffer(data, np.uint8).copy() if data is not None else np.zeros(0, np.uint8)
            first = strings.offset
            out = np.empty(int(ends[first + count] - ends[first]) + 4 * count, np.uint8)
            raw = out[: kernel.plain_strings(ends, text, first, count, out)].tobytes()
        return self._dictionary_page(raw, count)

    def integer_dictionary_page(self, values: I64) -> DictionaryPage:
        """The dictionary page of int64 values."""
        return self._dictionary_page(values.tobytes(), values.size)

    def _dictionary_page(self, raw: bytes, count: int) -> DictionaryPage:
        packed = self._zstd.compress(raw)
        header = dictionary_page_header(count, len(raw), len(packed))
        return DictionaryPage(header + packed, len(header) + len(raw))

    def data_page(self, place: int, rows: int, out: memoryview, about: list[int]) -> tuple[memoryview | bytes, int]:
        """The page that ``about`` (a row of the kernel's table) describes, compressed if it pays; and its size if not."""
        start, body, end, levels, present = about[: kernel.PRESENT + 1]
        raw_bytes = end - start
        values = body + levels
        if end - values < COMPRESS_MIN_BYTES:
            return out[start:end], raw_bytes
        if self._skip[place]:
            self._skip[place] -= 1
            return out[start:end], raw_bytes
        packed = self._zstd.compress(out[values:end])
        if len(packed) > PAYS_BELOW * (end - values):
            self._skip[place] = TRY_AGAIN_PAGES
            return out[start:end], raw_bytes
        header = data_page_header(rows, rows - present, about[kernel.ENCODING], levels, end - body, levels + len(packed))
        return b"".join((header, out[body:values], packed)), len(header) + end - body


class RowGroup:
    """Pages of the open row group, column by column, in memory."""

    def __init__(self) -> None:
        self.rows = 0
        self.chunks = [_Chunk() for _ in COLUMNS]

    def add(self, rows: int, out: U8, table: I64, compressor: Compressor) -> None:
        """Take the pages that ``encode_pages`` wrote into ``out``; copied, so the caller may use it again."""
        view = memoryview(out)  # type: ignore[arg-type]
        for place, (chunk, about) in enumerate(zip(self.chunks, table.tolist(), strict=True)):
            page, raw_bytes = compressor.data_page(place, rows, view, about)
            chunk.pages += page
            chunk.raw_bytes += raw_bytes
            chunk.present += about[kernel.PRESENT]
            chunk.encodings.add(about[kernel.ENCODING])
        for place in STATISTICS:
            chunk = self.chunks[place]
            chunk.low = min(chunk.low, int(table[place, kernel.MIN]))
            chunk.high = max(chunk.high, int(table[place, kernel.MAX]))
        self.rows += rows


class ParquetFile:
    """One file, a row group at a time. Holds no descriptor between row groups: open files are not bounded by their limit.

    ``patiently`` does what it is given, again where the disk took nothing; what was written of a part by then is cut off first.
    """

    def __init__(self, path: Path, patiently: Callable[[Callable[[], None]], None] | None = None) -> None:
        self.path = path
        self._patiently = patiently or _once
        self.rows = 0
        self.bytes = 0
        self._groups: list[bytes] = []

    def write(self, group: RowGroup, dictionary_page: Callable[[int], DictionaryPage]) -> None:
        """Append a row group. ``dictionary_page`` by place of the column. Raises OSError."""
        parts: list[bytes | bytearray] = [] if self.bytes else [MAGIC]
        at = self.bytes or len(MAGIC)
        first, raw_bytes = at, 0
        columns: list[bytes] = []
        for place, chunk in enumerate(group.chunks):
            if not chunk.present:
                _make_all_null(chunk, group.rows)
            dictionary = dictionary_page(place) if kernel.RLE_DICTIONARY in chunk.encodings else None
            if dictionary is not None:
                parts.append(dictionary.page)
                chunk.raw_bytes += dictionary.raw_bytes
            parts.append(chunk.pages)
            size = len(chunk.pages) + (len(dictionary.page) if dictionary else 0)
            columns.append(_column_chunk(place, chunk, group.rows, at, size, len(dictionary.page) if dictionary else 0))
            at += size
            raw_bytes += chunk.raw_bytes
        self._append(parts)
        described = [(1, _LIST, sequence(_STRUCT, columns)), _i64(2, raw_bytes), _i64(3, group.rows), _i64(5, first), _i64(6, at - first)]
        self._groups.append(struct(*described))
        self.rows += group.rows

    def finish(self) -> None:
        """Write the footer. Raises OSError."""
        footer = struct(
            _i32(1, 2), (2, _LIST, _SCHEMA), _i64(3, self.rows), (4, _LIST, sequence(_STRUCT, self._groups)),
            (5, _LIST, _DESCRIBED), (6, _BINARY, binary(b"keystone version 0.1.0")), (7, _LIST, _ORDERS),
        )  # fmt: skip
        self._append([footer, len(footer).to_bytes(4, "little"), MAGIC])

    def _append(self, parts: list[bytes | bytearray]) -> None:
        whole = b"".join(parts)
        self._patiently(lambda: self._append_once(whole))

    def _append_once(self, whole: bytes) -> None:
        try:
            with self._open() as file:
                file.seek(self.bytes)
                view = memoryview(whole)
                while view:
                    view = view[file.write(view) :]
        except OSError:
            self._cut_off()
            raise
        self.bytes += len(whole)

    def _cut_off(self) -> None:
        """Leave what was there before."""
        with suppress(OSError):
            if self.bytes:
                os.truncate(self.path, self.bytes)
            else:
                self.path.unlink()

    def _open(self) -> io.FileIO:
        if self.bytes:
            return self.path.open("r+b", buffering=0)  # never makes a file anew: somebody may have swept ours
        for _ in range(OPEN_TRIES):
            with suppress(FileExistsError):  # exist_ok would look again, and raise where it is gone by then
                self.path.parent.mkdir()
            with suppress(FileNotFoundError):  # another writer of the lake was done and removed the empty directory
                return self.path.open("xb", buffering=0)
        return self.path.open("xb", buffering=0)


def _once(do: Callable[[], None]) -> None:
    do()


def _make_all_null(chunk: _Chunk, rows: int) -> None:
    """One page says it all, however many there were, and needs no dictionary."""
    levels = varint(rows << 1) + b"\0"
    inner = struct(_i32(1, rows), _i32(2, rows), _i32(3, rows), _i32(4, kernel.PLAIN), _i32(5, len(levels)), _i32(6, 0), (7, 2, b""))
    header = struct(_i32(1, kernel.DATA_PAGE_V2), _i32(2, len(levels)), _i32(3, len(levels)), (8, _STRUCT, inner))
    chunk.pages = bytearray(header + levels)
    chunk.raw_bytes = len(chunk.pages)
    chunk.encodings = {kernel.PLAIN}


def _column_chunk(place: int, chunk: _Chunk, rows: int, at: int, size: int, dictionary_size: int) -> bytes:
    column = COLUMNS[place]
    encodings = chunk.encodings | ({kernel.PLAIN} if dictionary_size else set()) | ({kernel.RLE} if column.is_optional else set())
    statistics = [_i64(3, rows - chunk.present)]
    if place in STATISTICS:
        low, high = (binary(value.to_bytes(8, "little", signed=True)) for value in (chunk.low, chunk.high))
        statistics += [(5, _BINARY, high), (6, _BINARY, low)]
    fields = [
        _i32(1, _TYPE[column.type]), (2, _LIST, sequence(_I32, [integer(e) for e in sorted(encodings)])),
        (3, _LIST, sequence(_BINARY, [binary(column.name.encode())])), _i32(4, _ZSTD), _i64(5, rows), _i64(6, chunk.raw_bytes),
        _i64(7, size), _i64(9, at + dictionary_size),
    ]  # fmt: skip
    if dictionary_size:
        fields.append(_i64(11, at))
    fields.append((12, _STRUCT, struct(*statistics)))
    return struct(_i64(2, 0), (3, _STRUCT, struct(*fields)))
