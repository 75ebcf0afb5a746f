"""Move rows between sets of columns."""

# mypy: ignore-errors

import numpy as np

from keystone.kernels.compiler import callee, kernel
from keystone.kernels.wide import copy_32

STRINGS = 4  # device_id, session_id, user_id, extra


@kernel
def take_rows(source, partitions, partition, rows, target):
    """Copy the rows whose ``partitions[row] == partition`` to ``target``, in order; return how many."""
    to = np.int64(0)
    ends = target.ends
    for i in range(STRINGS):
        ends[i, 0] = 0
    for row in range(rows):
        if partitions[row] != partition:
            continue
        target.kind[to] = source.kind[row]
        target.fatal[to] = source.fatal[row]
        target.ts[to] = source.ts[row]
        for i in range(source.ints.shape[0]):
            target.ints[i, to] = source.ints[i, row]
        for i in range(source.codes.shape[0]):
            target.codes[i, to] = source.codes[i, row]
        for i in range(STRINGS):
            target.valid[i, to] = source.valid[i, row]
        target.key_lo[to] = source.key_lo[row]
        target.key_hi[to] = source.key_hi[row]
        target.user_hash[to] = source.user_hash[row]
        target.offset[to] = source.offset[row]
        target.line[to] = source.line[row]
        target.append_ts[to] = source.append_ts[row]
        to += 1
    take_strings(source.ends[0], source.device, partitions, partition, rows, ends[0], target.device)
    take_strings(source.ends[1], source.session, partitions, partition, rows, ends[1], target.session)
    take_strings(source.ends[2], source.user, partitions, partition, rows, ends[2], target.user)
    take_strings(source.ends[3], source.extra, partitions, partition, rows, ends[3], target.extra)
    return to


@callee
def take_strings(offsets, data, partitions, partition, rows, out_offsets, out):
    """The same for one Arrow-layout string column (both sides have spare bytes)."""
    to, end = np.int64(0), np.int64(0)
    for row in range(rows):
        if partitions[row] != partition:
            continue
        start, size = np.int64(offsets[row]), np.int64(offsets[row + 1]) - np.int64(offsets[row])
        done = np.int64(0)
        while done < size:
            copy_32(out, end + done, data, start + done)
            done += 32
        end += size
        to += 1
        out_offsets[to] = end
