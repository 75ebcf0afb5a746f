"""Which partition a device belongs to: Kafka's default partitioner on the key ``device_id`` (SPEC: partition).

``partition = (murmur2(UTF-8 bytes) & 0x7fffffff) % partitions``, so that any Kafka client agrees
(org.apache.kafka.common.utils.Utils.murmur2).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keystone.errors import UsageError
from keystone.events import I32, I64, PADDING, StringColumn
from keystone.kernels import partition as kernel

U32 = npt.NDArray[np.uint32]
_POSITIVE = 0x7FFFFFFF
_WORD = 0xFFFFFFFF
_MULTIPLIER = 0x5BD1E995
_SEED = 0x9747B28C


def murmur2(key: bytes) -> int:
    """Kafka's murmur2 of one key, 0 <= hash < 2^32. For a column use ``hashes_of``."""
    whole = len(key) & ~3
    state = _SEED ^ len(key)
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * _MULTIPLIER & _WORD
        k = (k ^ k >> 24) * _MULTIPLIER & _WORD
        state = (state * _MULTIPLIER & _WORD) ^ k
    if whole != len(key):
        state = (state ^ int.from_bytes(key[whole:], "little")) * _MULTIPLIER & _WORD
    state = (state ^ state >> 13) * _MULTIPLIER & _WORD
    return state ^ state >> 15


def partition_of(device_id: str | bytes, partitions: int) -> int:
    """Partition of one device id, 0 <= partition < partitions."""
    _check(partitions)
    key = device_id.encode() if isinstance(device_id, str) else device_id
    return (murmur2(key) & _POSITIVE) % partitions


def hashes_of(column: StringColumn) -> U32:
    """Murmur2 of every value of an Arrow-layout column, shape (rows,), uint32. A null hashes as the empty string."""
    hashes = np.empty(max(0, column.offsets.size - 1), np.uint32)
    kernel.hash_column(column.offsets, column.data, hashes)
    return hashes


def partitions_of(column: StringColumn, partitions: int) -> I32:
    """Partition of every device id of the column, shape (rows,), int32."""
    _check(partitions)
    return ((hashes_of(column) & np.uint32(_POSITIVE)) % np.uint32(partitions)).astype(np.int32)


def partitions_of_ids(device_ids: list[bytes], partitions: int) -> I32:
    """The same for a list of byte strings."""
    offsets = np.concatenate((np.zeros(1, np.int32), np.cumsum([len(i) for i in device_ids], dtype=np.int32))).astype(np.int32)
    text = np.frombuffer(b"".join(device_ids) + b"\0" * PADDING, np.uint8).copy()
    return partitions_of(StringColumn(offsets, text, np.ones(len(device_ids), np.uint8)), partitions)


def device_id_of(number: int) -> str:
    """The id of simulated device ``number`` (below 10^10): fixed width, so that a kernel can write it."""
    return f"d-{number:010d}"


def count_numbered_devices(devices: int, partitions: int) -> I64:
    """How many of the devices 0..devices-1 each partition holds, shape (partitions,), int64. About 15 ns a device."""
    _check(partitions)
    counts = np.zeros(partitions, np.int64)
    kernel.count_devices(_scratch(), devices, counts)
    return counts


def numbered_devices_of(devices: int, partitions: int, partition: int, count: int) -> U32:
    """Numbers of the ``count`` devices of one partition, rising, uint32."""
    numbers = np.empty(count + 1, np.uint32)
    found = kernel.devices_of(_scratch(), devices, partitions, partition, numbers)
    return numbers[:found].copy() if found != count else numbers[:count]


def _scratch() -> npt.NDArray[np.uint8]:
    return np.frombuffer(device_id_of(0).encode() + b"\0" * 20, np.uint8).copy()


def _check(partitions: int) -> None:
    if partitions < 1:
        raise UsageError(f"partitions = {partitions} must be at least 1")
