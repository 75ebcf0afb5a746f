"""What tests of record batches share."""

from __future__ import annotations

import struct

import crc32c


def resealed(wire: bytearray | bytes) -> bytes:
    """A batch with a checksum that fits to what is there."""
    wire = bytearray(wire)
    wire[17:21] = struct.pack(">I", crc32c.crc32c(bytes(wire[21:])))
    return bytes(wire)
