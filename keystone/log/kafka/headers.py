"""Records with their headers, of a topic that has few of them: headers cost an object each, so only who needs them reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keystone.log.kafka.batches import Batch, unpack
from keystone.log.kafka.reader import KafkaReader


class HeaderReader(KafkaReader):
    """A reader that also knows the headers of the records its last poll gave; where a record gives one twice, the last one."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._headers: dict[int, dict[str, bytes]] = {}

    def headers(self, offset: int) -> dict[str, bytes]:
        """Of a record of the last poll; a null value is empty."""
        return self._headers.get(offset, {})

    def _fill(self, bytes_max: int) -> None:
        self._headers.clear()  # nothing in the columns is left to be polled
        super()._fill(bytes_max)

    def _take(self, batch: Batch) -> None:
        super()._take(batch)  # raises where the batch is damaged, or its records do not fit into it
        if not batch.is_control:
            self._headers.update(headers_of(bytes(unpack(batch.codec, batch.payload)), batch.records, batch.base_offset))


def headers_of(text: bytes, records: int, base_offset: int) -> Iterator[tuple[int, dict[str, bytes]]]:
    """(offset, headers) of every record in a batch that was walked before: lengths and deltas fit. Headers that do not are left out."""
    at = 0
    for _ in range(records):
        length, at = _varint(text, at)
        stop = at + length
        _, at = _varint(text, at + 1)  # of the time, behind the attributes
        delta, at = _varint(text, at)
        for _ in range(2):  # key and value
            size, at = _varint(text, at)
            at += max(size, 0)
        yield base_offset + delta, _headers(text[at:stop])
        at = stop


def _headers(text: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        count, at = _varint(text, 0)
        for _ in range(count):
            size, at = _varint(text, at)
            name, at = text[at : at + size].decode("utf-8", "replace"), at + size
            size, at = _varint(text, at)
            found[name], at = text[at : at + max(size, 0)], at + max(size, 0)
    except IndexError:
        pass
    return found


def _varint(text: bytes, at: int) -> tuple[int, int]:
    bits = shift = 0
    while True:
        byte = text[at]
        at += 1
        bits |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (bits >> 1) ^ -(bits & 1), at
