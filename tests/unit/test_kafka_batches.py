"""Record batches: what others encode we read, what we encode others read, and damage is never read as records."""

from __future__ import annotations

import random
import struct
from typing import Any

import crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from keystone.events import LF, PADDING
from keystone.log.kafka import batches
from keystone.log.kafka.batches import CODECS, BadBatch, Batch, BatchBuilder, Columns, Unreadable, batches_of, end_offset, varint

NOW_MS = 1_790_000_000_000
Record = tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]
VALUES, KEYS = st.one_of(st.none(), st.binary(max_size=200)), st.one_of(st.none(), st.binary(max_size=30))
HEADERS = st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=9)), max_size=3).map(tuple)
RECORDS = st.lists(st.tuples(VALUES, KEYS, HEADERS), min_size=1, max_size=40)


def encoded(records: list[Record], codec: str, *, base_offset: int = 0) -> bytes:
    builder = BatchBuilder()
    for value, key, headers in records:
        builder.add(value, key, headers)
    wire = builder.encode(codec, now_ms=NOW_MS, producer_id=7, producer_epoch=1, sequence=3)
    wire[:8] = struct.pack(">q", base_offset)  # as brokers do
    return bytes(wire)


def values_of(columns: Columns) -> list[bytes]:
    starts, ends, _, _ = columns.places
    text = columns.text
    assert (text[ends] == LF).all()
    assert not len(ends) or text.size >= ends[-1] + PADDING
    return [text[start:end].tobytes() for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def read(chunk: bytes, *, wanted: int = 0, limit: int = 1 << 40) -> Columns:
    columns = Columns()
    for batch in batches_of(memoryview(chunk), wanted, limit):
        assert isinstance(batch, Batch), batch
        columns.take(batch, wanted)
    return columns


@given(records=RECORDS, codec=st.sampled_from(CODECS), base=st.integers(0, 1 << 40))
def test_what_we_encode_we_and_kafka_python_read(records: list[Record], codec: str, base: int) -> None:
    wire = encoded(records, codec, base_offset=base)
    columns = read(wire, limit=1 << 50)
    assert values_of(columns) == [value or b"" for value, _, _ in records]
    assert columns.places[2].tolist() == list(range(base, base + len(records)))
    assert columns.places[3].tolist() == [NOW_MS] * len(records)
    theirs = MemoryRecords(wire).next_batch()
    assert theirs.validate_crc()
    assert (theirs.producer_id, theirs.producer_epoch, theirs.base_sequence) == (7, 1, 3)
    assert [(r.value, r.key, tuple(r.headers)) for r in theirs] == records


@given(records=RECORDS, codec=st.sampled_from([0, 1, 2, 3, 4]), start=st.integers(0, 50))
def test_what_kafka_python_encodes_we_read(records: list[Record], codec: int, start: int) -> None:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=codec, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1 << 30
    )  # fmt: skip
    for i, (value, key, headers) in enumerate(records):
        builder.append(i, timestamp=NOW_MS + 5 * i, key=key, value=value, headers=list(headers))
    columns = read(bytes(builder.build()), wanted=start)
    assert values_of(columns) == [value or b"" for value, _, _ in records[start:]]
    assert columns.places[3].tolist() == [NOW_MS + 5 * i for i in range(start, len(records))]
    assert DefaultRecordBatch.CODEC_MASK == batches.CODEC_BITS


def test_append_times_of_the_broker_count_for_the_whole_batch() -> None:
    wire = bytearray(encoded([(b"a", None, ()), (b"b", None, ())], "none"))
    wire[21:23] = struct.pack(">h", batches.APPEND_TIME_BIT)
    wire[35:43] = struct.pack(">q", NOW_MS + 77)  # the batch's latest time: the broker's
    assert read(resealed(wire)).places[3].tolist() == [NOW_MS + 77] * 2


def resealed(wire: bytearray | bytes) -> bytes:
    """With a checksum that fits to what is there."""
    wire = bytearray(wire)
    wire[17:21] = struct.pack(">I", crc32c.crc32c(bytes(wire[21:])))
    return bytes(wire)


def test_batches_follow_each_other_and_one_cut_off_is_left_out() -> None:
    parts = [encoded([(b"%d" % (10 * i + j), None, ()) for j in range(10)], CODECS[i % 5], base_offset=10 * i) for i in range(5)]
    whole = b"".join(parts)
    assert values_of(read(whole)) == [b"%d" % i for i in range(50)]
    assert end_offset(memoryview(whole), 0, 50) == 50
    assert values_of(read(whole[:-1])) == [b"%d" % i for i in range(40)]
    assert end_offset(memoryview(whole[:-1]), 0, 50) == 40
    assert end_offset(memoryview(parts[0][:-1]), 0, 50) is None
    assert values_of(read(whole, wanted=33)) == [b"%d" % i for i in range(33, 50)]


def test_a_damaged_batch_is_told_with_its_offsets_and_its_neighbours_are_read() -> None:
    parts = [encoded([(b"%d" % (10 * i + j), None, ()) for j in range(10)], "lz4", base_offset=10 * i) for i in range(3)]
    for at in range(21, len(parts[1])):
        damaged = bytearray(parts[1])
        damaged[at] ^= 0x41
        found = list(batches_of(memoryview(parts[0] + bytes(damaged) + parts[2]), 0, 30))
        assert [type(batch) for batch in found] == [Batch, Unreadable, Batch], at
        assert found[1][:2] == (10, 19)


def test_nothing_in_the_bytes_makes_reading_fail_otherwise() -> None:
    """Thousands of damaged batches whose checksum fits: what the kernel and the codecs see is not what was sealed."""
    rng = random.Random(4)
    made = [encoded([(rng.randbytes(rng.randrange(60)), rng.randbytes(3), (("h", b"v"),)) for _ in range(12)], codec) for codec in CODECS]
    refused = 0
    for turn in range(6_000):
        wire = bytearray(made[turn % len(made)])
        for _ in range(rng.randrange(1, 4)):
            wire[rng.randrange(23, len(wire))] = rng.randrange(256)
        columns = Columns()
        for batch in batches_of(memoryview(resealed(wire)), 0, 1 << 40):
            if isinstance(batch, Unreadable):
                refused += 1
                continue
            try:
                columns.take(batch, 0)
            except BadBatch:
                refused += 1
        starts, ends, offsets, _ = columns.places
        assert (starts <= ends).all()
        assert columns.count == 0 or ends.max() + PADDING <= columns.text.size
        assert len(offsets) <= 12
    assert refused > 1_000


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_a_batch_that_would_unpack_to_too_much_is_refused(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = batches._PACK[codec](bytearray(2_000_000))
    monkeypatch.setattr(batches, "BATCH_BYTES_MAX", 1_000_000)
    with pytest.raises(BadBatch, match="over 1000000 bytes"):
        batches.unpack(CODECS.index(codec), memoryview(bytes(packed)))


def test_control_batches_are_known_as_such() -> None:
    wire = bytearray(encoded([(b"marker", b"key", ())], "none"))
    wire[21:23] = struct.pack(">h", batches.CONTROL_BIT)
    [batch] = batches_of(memoryview(resealed(wire)), 0, 10)
    assert isinstance(batch, Batch)
    assert batch.is_control


@given(st.integers(-(2**63), 2**63 - 1))
def test_varints(value: int) -> None:
    from kafka.record.util import decode_varint

    assert decode_varint(memoryview(varint(value)), 0)[0] == value


def test_arrays_and_views_are_taken_as_their_bytes() -> None:
    builder = BatchBuilder()
    given_: list[Any] = [np.arange(5, dtype=np.uint8), memoryview(b"abc")[1:], b"", np.zeros(0, np.uint8), bytearray(b"x")]
    for value in given_:
        builder.add(value)
    wire = builder.encode("none", now_ms=1, producer_id=-1, producer_epoch=-1, sequence=-1)
    assert values_of(read(bytes(wire))) == [bytes(value) for value in given_]
