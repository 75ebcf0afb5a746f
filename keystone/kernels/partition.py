"""Kafka's murmur2 over Arrow-like string columns and over numbered device ids."""

# mypy: ignore-errors

import numpy as np

from keystone.kernels.compiler import callee, kernel
from keystone.kernels.wide import load_u64

M = np.uint32(0x5BD1E995)
SEED = np.uint32(0x9747B28C)
R = np.uint32(24)
MASK_32 = np.uint64(0xFFFFFFFF)


@callee
def murmur2(text, start, size):
    """Murmur2 of ``text[start:start + size]`` as uint32; reads up to 7 bytes past the end."""
    h = np.uint32(SEED ^ np.uint32(size))
    at = start
    for _ in range(size >> 2):
        k = np.uint32(load_u64(text, at) & MASK_32)
        k = np.uint32(k * M)
        k = np.uint32(k ^ (k >> R))
        h = np.uint32(np.uint32(h * M) ^ np.uint32(k * M))
        at += 4
    rest = size & 3
    if rest:
        tail = load_u64(text, at) & ((np.uint64(1) << np.uint64(8 * rest)) - np.uint64(1))
        h = np.uint32(np.uint32(h ^ np.uint32(tail)) * M)
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(13))) * M)
    return np.uint32(h ^ (h >> np.uint32(15)))


@kernel
def hash_column(offsets, data, out):
    """``out[i]`` (uint32) = murmur2 of ``data[offsets[i]:offsets[i + 1]]``; ``data`` has 8 spare bytes behind it."""
    for row in range(offsets.size - 1):
        start = np.int64(offsets[row])
        out[row] = murmur2(data, start, np.int64(offsets[row + 1]) - start)


@callee
def partition_of_number(scratch, number, partitions):
    """Partition of the device id of ``number``: ``scratch`` (uint8, 32) holds ``d-`` and ten digits."""
    rest = number
    for place in range(11, 1, -1):
        scratch[place] = 48 + rest % 10
        rest //= 10
    return np.int64(murmur2(scratch, 0, 12) & np.uint32(0x7FFFFFFF)) % partitions


@kernel
def count_devices(scratch, devices, counts):
    """Add to ``counts[p]`` (int64) the devices 0..devices-1 that belong to partition p."""
    for number in range(devices):
        counts[partition_of_number(scratch, number, counts.size)] += 1


@kernel
def devices_of(scratch, devices, partitions, partition, out):
    """Write the numbers of the devices of ``partition`` to ``out`` (uint32), rising; return how many."""
    found = 0
    for number in range(devices):
        if partition_of_number(scratch, number, partitions) == partition:
            out[found] = number
            found += 1
    return found
