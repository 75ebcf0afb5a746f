"""Rows as a route's projection shaped them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

import orjson
import polars as pl

from keystone.sinks.base import DAY_MS, Document, Rows

ID_CHARS: Final = 32
ALWAYS: Final = ("@timestamp", "cohort")


@dataclass(frozen=True, slots=True)
class Projected:
    """``inner``'s ids and days, with the columns of ``frame``, a row each: who a row is does not depend on what is told of it.

    What every document has (``ALWAYS``) is added.
    """

    inner: Rows
    frame: pl.DataFrame

    @property
    def kind(self) -> str:
        return self.inner.kind

    @property
    def rows(self) -> int:
        return self.frame.height

    @property
    def size_bytes(self) -> int:
        return self.inner.size_bytes + int(self.frame.estimated_size())

    def documents(self, start: int, stop: int) -> list[Document]:
        bodies = bodies_of(self.frame.slice(start, stop - start))
        return [replace(document, body=_with(body, document.body)) for document, body in zip(self.inner.documents(start, stop), bodies, strict=True)]


def _with(body: bytes, whole: bytes) -> bytes:
    known = orjson.loads(whole)
    always = orjson.dumps({name: known[name] for name in ALWAYS if name in known})
    return b"{" + b",".join(part for part in (always[1:-1], body[1:-1]) if part) + b"}"


@dataclass(frozen=True, slots=True)
class FrameRows:
    """Events or dead letters: named by their place in the log (``whole``), told as ``frame``, a row each."""

    kind: str
    whole: pl.DataFrame
    frame: pl.DataFrame

    @property
    def rows(self) -> int:
        return self.frame.height

    @property
    def size_bytes(self) -> int:
        return int(self.whole.estimated_size() + self.frame.estimated_size())

    def documents(self, start: int, stop: int) -> list[Document]:
        places = self.whole.slice(start, stop - start).select("partition", "offset", "line", _day(self.whole))
        bodies = bodies_of(self.frame.slice(start, stop - start))
        return [Document(self.kind, place_id(*place[:3]), place[3], body) for place, body in zip(places.iter_rows(), bodies, strict=True)]


def place_id(partition: int, offset: int, line: int) -> str:
    """The same for the same event or line, whoever says it."""
    return hashlib.sha256(f"{partition}\0{offset}\0{line}".encode()).hexdigest()[:ID_CHARS]


def bodies_of(frame: pl.DataFrame) -> list[bytes]:
    """One JSON object a row, without a line feed."""
    if frame.width == 0:
        return [b"{}"] * frame.height
    lines = frame.write_ndjson().encode().split(b"\n")[: frame.height]
    if len(lines) != frame.height:
        raise ValueError(f"{frame.height} rows became {len(lines)} lines")
    return [line if line.startswith(b"{") else orjson.dumps({}) for line in lines]


def _day(frame: pl.DataFrame) -> pl.Expr:
    times = [pl.col(name) for name in ("append_ts", "ts") if name in frame.columns]
    return (pl.coalesce(*times, pl.lit(0)) // DAY_MS).alias("day") if times else pl.lit(0).alias("day")
