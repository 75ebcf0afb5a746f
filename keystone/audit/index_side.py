"""What a search server has of alerts and sessions, by id, read in pages; nothing is refreshed, so reading is all that a login must allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson
import polars as pl

from keystone.audit.lake_side import IDENTITY, IDS
from keystone.errors import KeystoneError
from keystone.sinks.base import ALERTS, SESSIONS
from keystone.sinks.elastic_admin import ADMIN_TIMEOUT_MS, NOT_FOUND, ElasticRefused, indices_of
from keystone.sinks.elastic_http import Nodes, trouble_of
from keystone.sinks.elastic_schema import day_of, pattern

PAGE: Final = 10_000  # hits of one request: the most that servers give by default; ~2 MB
ASKED_MAX: Final = 1_000  # ids of one question
ANSWERED: Final = 300  # statuses below
_EPOCH: Final = 719_163  # 1970-01-01 as an ordinal
#: What orders documents so that each is read once: also those that are in two days' indices.
SORT: Final[dict[str, tuple[str, ...]]] = {
    ALERTS: ("@timestamp", "alert_id", "_index"),
    SESSIONS: ("@timestamp", "device_id", "session_id", "start_ts", "_index"),
}


class IndexSide:
    """The indices of the alerts and sessions of one cluster. Raises ``SinkBusy`` where no answer comes, ``ElasticRefused`` where it is no."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def first_day(self, kind: str) -> int | None:
        """The oldest day (since the epoch) that has an index; None where none has."""
        days = [index.day for index in indices_of(self._nodes, kind)]
        return min(days).toordinal() - _EPOCH if days else None

    def documents(self, kind: str, from_ms: int, until_ms: int) -> pl.DataFrame:
        """IDS of all documents with ``@timestamp`` in [from_ms, until_ms), repeats included, with the day of their index."""
        query = {"range": {"@timestamp": {"gte": from_ms, "lt": until_ms, "format": "epoch_millis"}}}
        return self._frame(hit for page in self._pages(kind, query) for hit in page)

    def those(self, kind: str, ids: Sequence[str]) -> pl.DataFrame:
        """IDS of the documents with these ids."""
        parts = [ids[at : at + ASKED_MAX] for at in range(0, len(ids), ASKED_MAX)]
        return self._frame(hit for part in parts for page in self._pages(kind, {"ids": {"values": list(part)}}) for hit in page)

    def identities(self, kind: str, ids: Sequence[str]) -> pl.DataFrame:
        """``id`` and IDENTITY of the documents with these ids, of those that tell it: a route's ``select`` may leave it out."""
        parts = [ids[at : at + ASKED_MAX] for at in range(0, len(ids), ASKED_MAX)]
        hits = (hit for part in parts for page in self._pages(kind, {"ids": {"values": list(part)}}, IDENTITY) for hit in page)
        rows = [(hit["_id"], *(hit["fields"][name][0] for name in IDENTITY)) for hit in hits if all(name in hit.get("fields", {}) for name in IDENTITY)]
        return pl.DataFrame(rows, schema=dict.fromkeys(("id", *IDENTITY), pl.String), orient="row").unique()

    def _pages(self, kind: str, query: Any, fields: Sequence[str] = ()) -> Iterator[list[Any]]:
        body: dict[str, Any] = {
            "size": PAGE, "query": query, "_source": False, "track_total_hits": False, "sort": [{name: "asc"} for name in SORT[kind]],
        }  # fmt: skip
        if fields or kind == ALERTS:
            body["docvalue_fields"] = list(fields) or ["partition"]
        while True:
            hits = self._search(kind, body)
            yield hits
            if len(hits) < PAGE:
                return
            body["search_after"] = hits[-1]["sort"]

    def _search(self, kind: str, body: Any) -> list[Any]:
        path = f"/{pattern(kind)}/_search?ignore_unavailable=true&allow_no_indices=true&expand_wildcards=open"
        reply = self._nodes.request("POST", path, orjson.dumps(body), timeout_ms=ADMIN_TIMEOUT_MS)
        if reply.status in {400, NOT_FOUND}:
            raise ElasticRefused(f"the search server refuses this (status {reply.status}): {reply.reason()}")
        if reply.status >= ANSWERED:
            raise trouble_of(reply)
        answer = reply.json()
        if answer.get("timed_out") or answer.get("_shards", {}).get("failed"):
            raise KeystoneError("the search server answered from some of its shards only: keystone elastic check says how it is; then audit again")
        hits: list[Any] = answer["hits"]["hits"]
        return hits

    @staticmethod
    def _frame(hits: Iterator[Any]) -> pl.DataFrame:
        columns: dict[str, list[Any]] = {name: [] for name in IDS}
        for hit in hits:
            day = day_of(hit["_index"])
            if day is None:
                continue  # somebody else's index, which the pattern fits
            columns["id"].append(hit["_id"])
            columns["partition"].append(int(hit.get("fields", {}).get("partition", [-1])[0]))
            columns["at_ms"].append(int(hit["sort"][0]))
            columns["day"].append(day.toordinal() - _EPOCH)
        return pl.DataFrame(columns, schema=IDS)
