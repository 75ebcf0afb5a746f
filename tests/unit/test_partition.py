"""Murmur2 and the partitions, against Kafka's own."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.errors import UsageError
from keystone.events import PADDING, StringColumn
from keystone.partition import count_numbered_devices, device_id_of, hashes_of, murmur2, numbered_devices_of, partition_of, partitions_of, partitions_of_ids

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated call
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.partitioner.default import murmur2 as kafka_murmur2

# org.apache.kafka.common.utils.UtilsTest.testMurmur2, as unsigned
KAFKA_VECTORS = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"a-little-bit-longer-string": -1486304829,
                 b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, b"abc": 479470107}  # fmt: skip


def column_of(values):
    offsets = np.concatenate(([0], np.cumsum([len(v) for v in values]))).astype(np.int32)
    return StringColumn(offsets, np.frombuffer(b"".join(values) + b"\xff" * PADDING, np.uint8).copy(), np.ones(len(values), np.uint8))


@pytest.mark.parametrize(("key", "expected"), KAFKA_VECTORS.items())
def test_murmur2_is_kafkas(key, expected):
    assert murmur2(key) == expected & 0xFFFFFFFF


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(1, 500))
def test_column_and_scalar_agree_with_kafka(keys, partitions):
    assert hashes_of(column_of(keys)).tolist() == [kafka_murmur2(key) & 0xFFFFFFFF for key in keys] == [murmur2(key) for key in keys]
    expected = [(kafka_murmur2(key) & 0x7FFFFFFF) % partitions for key in keys]
    assert partitions_of(column_of(keys), partitions).tolist() == expected == [partition_of(key, partitions) for key in keys]
    assert partitions_of_ids(keys, partitions).tolist() == expected


def test_numbered_devices_fall_where_their_ids_do():
    expected = [partition_of(device_id_of(n), 5) for n in range(2_000)]
    counts = count_numbered_devices(2_000, 5)
    assert counts.tolist() == np.bincount(expected, minlength=5).tolist()
    for partition in range(5):
        assert numbered_devices_of(2_000, 5, partition, int(counts[partition])).tolist() == [n for n in range(2_000) if expected[n] == partition]


def test_partitions_below_one_are_refused():
    with pytest.raises(UsageError, match="at least 1"):
        partition_of("a", 0)
