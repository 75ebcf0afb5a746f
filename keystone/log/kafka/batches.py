"""Record batches (magic 2): bytes of the wire to columns of records, and frames to bytes of the wire.

    base offset i64 | length i32 | leader epoch i32 | magic i8 | crc u32 | attributes i16 | last offset delta i32 |
    base timestamp i64 | max timestamp i64 | producer id i64 | producer epoch i16 | base sequence i32 | records i32 | records

(https://kafka.apache.org/documentation/#recordbatch). The checksum is over everything behind it. A batch is read whole: one
header, one decompression, one walk by a kernel, no object a record.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import crc32c
import lz4.frame
import numpy as np
import snappy
import zstandard

from keystone.events import I64, LF, PADDING, U8
from keystone.kernels import kafka as kernels

HEADER: Final = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES: Final = HEADER.size  # 61
_PREFIX_BYTES: Final = 12  # base offset and length: what the length does not count
_CHECKED_FROM: Final = 21  # the first byte behind the checksum
_CHECKED_HEADER: Final = struct.Struct(">hiqqqhii")  # of it, the header's part
MAGIC: Final = 2
MAGIC_AT: Final = 16
CODEC_BITS: Final = 0x07
APPEND_TIME_BIT: Final = 0x08
CONTROL_BIT: Final = 0x20
BATCH_BYTES_MAX: Final = 256 << 20  # unpacked; packed, a broker's limit is a few MB, and no codec of events does better than 1:60
_SPAN_MAX: Final = 1 << 24  # offsets of one batch: a record takes 7 bytes at least
RECORD_OVERHEAD_BYTES: Final = 64  # of a record's lengths and deltas, at most, without key and headers
CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")  # by their number
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEAD_BYTES: Final = 16
_ZSTD_LEVEL: Final = 1
_KEPT_BYTES_MAX: Final = 64 << 20  # of a reader's memory after one huge batch
_GZIP_WBITS: Final = 31
_STEP_BYTES: Final = 2 << 20  # unpacked at once: room is taken for all of it, and 256 MiB of that cost 0.5 ms a batch


class Unreadable(NamedTuple):
    """A batch that cannot be read: the offsets it spans, and why in a few words. ``has_end``: what lies behind it can be read."""

    first_offset: int
    last_offset: int
    why: str
    has_end: bool


class BadBatch(Exception):
    """The bytes are not what a batch may be."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as it lies in a fetched chunk. ``payload`` is still packed by codec number ``codec``."""

    base_offset: int
    last_offset: int
    append_ms: int
    has_append_time: bool
    is_control: bool
    codec: int
    records: int
    payload: memoryview


def batches_of(chunk: memoryview, wanted_offset: int, limit: int, *, is_first: bool = False) -> Iterator[Batch | Unreadable]:
    """The whole batches of a chunk that was fetched from ``wanted_offset``, in order; one that is cut off at its end is left out.

    ``limit``: the log's end at that time. ``is_first``: no batch lies across ``wanted_offset``, because one ended there. Checksums
    leave out the first 17 bytes of a header, so these have to fit to what is around them: lengths lead to the next header,
    offsets rise. Where they do not, nothing follows, because the way is lost.
    """
    at, floor = 0, -1
    while at + HEADER_BYTES <= len(chunk):
        fields = HEADER.unpack_from(chunk, at)
        base_offset, length, crc, attributes, last_offset = fields[0], fields[1], fields[4], fields[5], fields[0] + fields[6]
        expected = max(wanted_offset, floor)
        end = at + _PREFIX_BYTES + length
        why = _misfit(base_offset, length, fields[3], floor)
        if why is None and end > len(chunk):
            return
        following = _base_at(chunk, end) if why is None else None
        if why is None and crc32c.crc32c(chunk[at + _CHECKED_FROM : end]) != crc:
            why = "its checksum does not match"
            behind = _behind(fields, following, wanted_offset if floor < 0 else -1, limit)
            if behind <= limit and (base_offset <= expected if following is None else behind == following):
                yield Unreadable(min(base_offset, expected), behind - 1, why, has_end=True)
                at, floor = end, behind
                continue
        elif why is None and not _fits(base_offset, last_offset, expected, following, limit, is_first=is_first):
            why = "its offsets do not fit those around it"
        if why is not None:
            yield Unreadable(expected, expected, why, has_end=False)
            return
        has_append_time = bool(attributes & APPEND_TIME_BIT)
        yield Batch(
            base_offset,
            last_offset,
            fields[8] if has_append_time else fields[7],
            has_append_time,
            bool(attributes & CONTROL_BIT),
            attributes & CODEC_BITS,
            fields[12],
            chunk[at + HEADER_BYTES : end],
        )
        at, floor = end, last_offset + 1


def end_offset(chunk: memoryview, wanted_offset: int, limit: int) -> int | None:
    """The offset behind the last whole batch of a chunk, by its headers alone; None where not even the first is whole.

    ``wanted_offset`` where the first one's header cannot be one: whoever reads the chunk will find out.
    """
    at, floor = 0, -1
    while at + HEADER_BYTES <= len(chunk):
        fields = HEADER.unpack_from(chunk, at)
        if _misfit(fields[0], fields[1], fields[3], floor) is not None:
            return max(wanted_offset, floor)
        end = at + _PREFIX_BYTES + fields[1]
        if end > len(chunk):
            break
        wanted = wanted_offset if floor < 0 else -1
        at, floor = end, min(_behind(fields, _base_at(chunk, end), wanted, limit), _behind(fields, None, wanted, limit))  # the next may be damaged
    return max(wanted_offset, floor) if floor >= 0 else None


def _misfit(base_offset: int, length: int, magic: int, floor: int) -> str | None:
    """Why something is no header of a batch, by the fields that no checksum is over."""
    if magic != MAGIC:
        return f"message format {magic}, not {MAGIC}: it is damaged, or from before Kafka 0.11"
    if length < HEADER_BYTES - _PREFIX_BYTES:
        return f"a length of {length} bytes"
    return f"offset {base_offset} after {floor - 1}" if base_offset < max(floor, 0) else None


def _fits(base_offset: int, last_offset: int, expected: int, following: int | None, limit: int, *, is_first: bool) -> bool:
    """Whether offsets are possible. Holes are, where brokers compact; but not one that the batch behind knows nothing of."""
    if not base_offset <= last_offset < limit or (is_first and base_offset < expected <= last_offset):
        return False
    if following is None:
        return last_offset >= expected
    return last_offset < following or base_offset <= expected <= last_offset


def _base_at(chunk: memoryview, at: int) -> int | None:
    """The base offset of the batch at ``at``, if that much of it is there."""
    return int.from_bytes(chunk[at : at + 8], "big", signed=True) if at + 8 <= len(chunk) else None


def _behind(fields: tuple[int, ...], following: int | None, wanted_offset: int, limit: int) -> int:
    """The offset behind a batch whose header may be damaged: by the batch behind it, if that is there, else by what is possible.

    ``wanted_offset``: that the batch holds by its broker, which does not give another one first; -1 where nobody said so.
    """
    base_offset, last_delta, records = fields[0], fields[6], fields[12]
    if following is not None and base_offset < following <= base_offset + _SPAN_MAX:
        return following
    spans = (span for span in (last_delta + 1, records) if 0 < span <= _SPAN_MAX and base_offset + span <= limit)
    return max(base_offset + next(spans, 1), wanted_offset + 1)


# --- packing -----------------------------------------------------------------------------------------------------------
def unpack(codec: int, payload: memoryview) -> bytes | memoryview:
    """The records of a batch. Raises ``BadBatch`` where they cannot be unpacked, or would be over BATCH_BYTES_MAX."""
    if codec == 0:
        return payload
    if codec >= len(CODECS):
        raise BadBatch(f"codec {codec} is unknown")
    try:
        unpacked = _UNPACK[CODECS[codec]](payload)
    except BadBatch:
        raise
    except Exception as error:
        raise BadBatch(f"{CODECS[codec]}: {type(error).__name__}") from error
    if len(unpacked) > BATCH_BYTES_MAX:
        raise BadBatch(f"{CODECS[codec]}: over {BATCH_BYTES_MAX} bytes unpacked")
    return unpacked


def _unpack_gzip(payload: memoryview) -> bytes:
    return zlib.decompressobj(_GZIP_WBITS).decompress(payload, BATCH_BYTES_MAX + 1)


def _unpack_lz4(payload: memoryview) -> bytes:
    return _joined(_lz4_steps(payload))


def _lz4_steps(payload: memoryview) -> Iterator[bytes]:
    unpacker = lz4.frame.LZ4FrameDecompressor()
    packed: memoryview | bytes = payload
    while not unpacker.eof:
        part: bytes = unpacker.decompress(packed, _STEP_BYTES)
        yield part
        packed = b""
        if not unpacker.eof and (unpacker.needs_input or not part):
            raise BadBatch("lz4: cut off")


def _unpack_zstd(payload: memoryview) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(payload, read_across_frames=True) as reader:
        return _joined(iter(lambda: reader.read(_STEP_BYTES), b""))


def _joined(parts: Iterator[bytes]) -> bytes:
    """All of ``parts``, up to the first beyond BATCH_BYTES_MAX."""
    taken, size = [], 0
    for part in parts:
        taken.append(part)
        size += len(part)
        if size > BATCH_BYTES_MAX:
            break
    return taken[0] if len(taken) == 1 else b"".join(taken)


def _unpack_snappy(payload: memoryview) -> bytes:
    """Plain snappy, or Java's framing of it: a head of 16 bytes, then blocks with their length before them."""
    packed = bytes(payload)
    if not packed.startswith(_XERIAL):
        return _snappy_block(packed)
    blocks, at, size = [], _XERIAL_HEAD_BYTES, 0
    while at + 4 <= len(packed):
        (length,) = struct.unpack_from(">i", packed, at)
        if not 0 < length <= len(packed) - at - 4:
            raise BadBatch(f"snappy: a block of {length} bytes")
        block = _snappy_block(packed[at + 4 : at + 4 + length])
        blocks.append(block)
        size += len(block)
        if size > BATCH_BYTES_MAX:
            raise BadBatch(f"snappy: over {BATCH_BYTES_MAX} bytes unpacked")
        at += 4 + length
    return b"".join(blocks)


def _snappy_block(packed: bytes) -> bytes:
    size = shift = 0
    for byte in packed[:5]:  # its own unpacked length, a varint
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if size > BATCH_BYTES_MAX:
        raise BadBatch(f"snappy: over {BATCH_BYTES_MAX} bytes unpacked")
    unpacked: bytes = snappy.uncompress(packed)
    return unpacked


_UNPACK: Final[dict[str, Callable[[memoryview], bytes]]] = {
    "gzip": _unpack_gzip,
    "snappy": _unpack_snappy,
    "lz4": _unpack_lz4,
    "zstd": _unpack_zstd,
}


def _pack_gzip(records: bytearray) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP_WBITS)
    return packer.compress(records) + packer.flush()


def _pack_lz4(records: bytearray) -> bytes:
    packed: bytes = lz4.frame.compress(records, block_linked=False, store_size=False)  # Kafka's reader takes independent blocks only
    return packed


_PACK: Final[dict[str, Callable[[bytearray], bytes | bytearray]]] = {
    "none": lambda records: records,
    "gzip": _pack_gzip,
    "snappy": lambda records: snappy.compress(bytes(records)),
    "lz4": _pack_lz4,
    "zstd": lambda records: zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(records),
}


# --- reading -----------------------------------------------------------------------------------------------------------
class Columns:
    """Room for the records of one poll: a text that grows by whole batches, and four columns of places."""

    def __init__(self) -> None:
        self._text: U8 = np.empty(1 << 20, np.uint8)
        self._places: I64 = np.empty((kernels.COLUMNS, 1024), np.int64)
        self._size = self._value_bytes = 0
        self.count = 0
        self.events = 0  # lines of the values
        self.has_append_times = True  # all of them; else some are the producers'

    @property
    def size_bytes(self) -> int:
        """Bytes of the values taken so far."""
        return self._value_bytes

    def clear(self) -> None:
        """Begin anew in the same memory, which whoever polled last may no longer use."""
        if self._text.size > _KEPT_BYTES_MAX:
            self._text = np.empty(1 << 20, np.uint8)
        self._size = self._value_bytes = self.count = self.events = 0
        self.has_append_times = True

    def take(self, batch: Batch, wanted_offset: int) -> None:
        """Add the records of ``batch`` from ``wanted_offset`` on. Raises ``BadBatch``, and nothing was added then."""
        payload = unpack(batch.codec, batch.payload)
        size, start = len(payload), self._size
        if batch.records < 0 or batch.records * 7 > size:  # a record takes 7 bytes at least
            raise BadBatch(f"{batch.records} records in {size} bytes")
        self._make_room(size, batch.records)
        self._text[start : start + size] = np.frombuffer(payload, np.uint8)
        count = int(
            kernels.walk_records(
                self._text, start, start + size, batch.records, batch.base_offset, batch.last_offset, batch.append_ms,
                not batch.has_append_time, wanted_offset, self._places, self.count,
            )
        )  # fmt: skip
        if count == kernels.MALFORMED:
            raise BadBatch("its records do not fit into it")
        starts, ends = self._places[kernels.STARTS, self.count : count], self._places[kernels.ENDS, self.count : count]
        self._value_bytes += int((ends - starts).sum())
        self.events += int(kernels.count_events(self._text, starts, ends))
        self.has_append_times &= batch.has_append_time
        self._size, self.count = start + size, count

    def _make_room(self, size: int, records: int) -> None:
        if self._size + size + PADDING > self._text.size:
            wider: U8 = np.empty(2 * (self._size + size + PADDING), np.uint8)
            wider[: self._size] = self._text[: self._size]
            self._text = wider
        if self.count + records > self._places.shape[1]:
            longer: I64 = np.empty((kernels.COLUMNS, 2 * (self.count + records)), np.int64)
            longer[:, : self.count] = self._places[:, : self.count]
            self._places = longer

    @property
    def text(self) -> U8:
        """What was taken, with PADDING behind it."""
        self._text[self._size : self._size + PADDING] = LF
        return self._text[: self._size + PADDING]

    @property
    def places(self) -> I64:
        """Starts ends offsets append_ms, shape (4, count)."""
        return self._places[:, : self.count]


# --- writing -----------------------------------------------------------------------------------------------------------
def varint(value: int) -> bytes:
    """A zigzag varint."""
    bits = (value << 1) ^ (value >> 63)
    out = bytearray()
    while bits > 0x7F:
        out.append(bits & 0x7F | 0x80)
        bits >>= 7
    out.append(bits)
    return bytes(out)


def _varint_at(text: bytearray, at: int) -> tuple[int, int]:
    """A zigzag varint of ours at ``text[at]``, and where it ends."""
    bits = shift = 0
    while True:
        byte = text[at]
        at += 1
        bits |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (bits >> 1) ^ -(bits & 1), at


_NULL: Final = varint(-1)
Headers = tuple[tuple[str, bytes], ...]
NO_HEADERS: Final = b"\x00"


def headers_text(headers: Headers) -> bytes:
    """As a record ends: how many, then each."""
    parts = [varint(len(headers))]
    for name, value in headers:
        key = name.encode()
        parts += [varint(len(key)), key, varint(len(value)), value]
    return b"".join(parts)


class BatchBuilder:
    """Records of one partition on their way into one batch: each value is copied once, here."""

    __slots__ = ("count", "records")

    def __init__(self) -> None:
        self.records = bytearray()
        self.count = 0

    def __len__(self) -> int:
        """Bytes so far, unpacked."""
        return len(self.records)

    def add(self, value: Any, key: bytes | None = None, headers: Headers = ()) -> None:
        """Append one record; ``value`` is anything with bytes in it, or None for a null."""
        if value is not None and type(value) is not bytes:
            value = memoryview(value).cast("B")  # numpy would take += for its own addition
        size = _NULL if value is None else varint(len(value))
        key_text = _NULL if key is None else varint(len(key)) + key
        head = b"\x00\x00" + varint(self.count) + key_text + size
        tail = headers_text(headers) if headers else NO_HEADERS
        length = len(head) + (0 if value is None else len(value)) + len(tail)
        self.records += varint(length)
        self.records += head
        if value is not None:
            self.records += value
        self.records += tail
        self.count += 1

    def add_records(self, records: memoryview, count: int) -> None:
        """Append records that are encoded, numbered from ``count`` of this one on."""
        self.records += records
        self.count += count

    def split(self, at: int) -> BatchBuilder:
        """Cut off the records from number ``at`` on and return them as a batch of their own. Rare, so record by record."""
        rest, cut, end = BatchBuilder(), len(self.records), 0
        for number in range(self.count):
            begin = end
            length, body = _varint_at(self.records, begin)
            end = body + length
            if number >= at:
                cut = min(cut, begin)
                _, behind = _varint_at(self.records, body + 2)  # its number, behind attributes and time
                head = b"\x00\x00" + varint(number - at)
                rest.records += varint(len(head) + end - behind) + head
                rest.records += self.records[behind:end]
        rest.count, self.count = self.count - at, at
        del self.records[cut:]
        return rest

    def encode(self, codec: str, *, now_ms: int, producer_id: int, producer_epoch: int, sequence: int) -> bytearray:
        """The batch as a produce request carries it."""
        packed = _PACK[codec](self.records)
        checked = _CHECKED_HEADER.pack(CODECS.index(codec), self.count - 1, now_ms, now_ms, producer_id, producer_epoch, sequence, self.count)
        crc = crc32c.crc32c(packed, crc32c.crc32c(checked))
        batch = bytearray(struct.pack(">qiibI", 0, HEADER_BYTES - _PREFIX_BYTES + len(packed), -1, MAGIC, crc))
        batch += checked
        batch += packed
        return batch
