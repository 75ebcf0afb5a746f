"""The decoder's output as plain Python, line by line, to compare with the reference."""

from __future__ import annotations

from typing import Any

from keystone.decode import Decoder
from keystone.events import DICTIONARY_COLUMNS, INT_COLUMNS, INT_NULL, EventBatch, Records
from tests.reference import decode_line, lines_of, parse_json

BOOLS = {-1: None, 0: False, 1: True}


def event_of(batch: EventBatch, row: int, decoder: Decoder) -> dict[str, Any]:
    """One row as the reference spells an event."""
    event: dict[str, Any] = {"ts": int(batch.ts[row]), "fatal": BOOLS[int(batch.fatal[row])]}
    for column, name in enumerate(DICTIONARY_COLUMNS):
        code = int(batch.codes[column, row])
        event[name] = None if code < 0 else decoder.dictionaries.text(column, code)
    for column, name in enumerate(INT_COLUMNS):
        value = int(batch.ints[column, row])
        event[name] = None if value == INT_NULL else value
    for name in ("device_id", "session_id", "user_id", "extra"):
        value = getattr(batch, name).value(row)
        event[name] = None if value is None else value.decode()
    if event["extra"] is not None:
        event["extra"] = parse_json(event["extra"])
    return event


def decode_lines(text: bytes, decoder: Decoder) -> dict[int, dict[str, Any] | str]:
    """Line number -> event or reason, for every line of a plain text that is not blank."""
    found: dict[int, dict[str, Any] | str] = {}
    received = 0
    for decoded in decoder.decode(Records.of([text]), per_line=True):
        received += decoded.received
        for row in range(decoded.batch.rows):
            number = int(decoded.batch.offset[row])
            assert number not in found
            found[number] = event_of(decoded.batch, row, decoder)
        for letter in decoded.dead_letters:
            assert letter.offset not in found
            found[letter.offset] = letter.reason
    assert received == len(found)
    return found


def expected_lines(text: bytes) -> dict[int, dict[str, Any] | str]:
    """The same from the reference."""
    pairs = ((number, decode_line(line)) for number, line in lines_of(text))
    return {number: outcome for number, outcome in pairs if outcome is not None}
