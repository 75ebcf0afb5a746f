"""What the index says of the last seconds: sums of all sessions, and of each region, device type and CDN."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from keystone.sinks.base import ALERTS, COHORTS
from keystone.sinks.documents import ratios
from keystone.sinks.elastic_http import trouble_of
from keystone.sinks.elastic_schema import pattern

if TYPE_CHECKING:
    from keystone.sinks.elastic_http import Nodes

DIMENSIONS: Final = ("region", "device_type", "cdn")
RATIOS: Final = ("rebuffering_ratio", "ebvs_ratio", "vsf_ratio", "vpf_ratio")
SUMS: Final = ("stall_ms", "played_ms", "attempts", "ebvs", "vsf", "vpf", "ended")
ALL: Final = "all"
UNKNOWN: Final = "unknown"  # as cohorts call a dimension that is absent
VALUES_MAX: Final = 2_000  # of a dimension that are looked at, those that stalled longest; cohorts have 1,002 unless told otherwise
WINDOW_MS: Final = 1_000  # of cohort rows that are added up
CLOCKS_MS: Final = 60_000  # that the brokers' clocks may be ahead of ours
PRIOR_MS: Final = 600_000  # of everybody's playing, added to each before they are ranked

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """``all``: a row as those in ``tables`` (by dimension: ``value alerts attempts`` and RATIOS, the worst first), of all sessions.

    Ratios are of sums (SPEC 4), None where nothing happened. ``concurrent_plays``: the most at the end of a window. ``newest_ms``: of the
    last window, or the last alert, that there is; None: nothing ever.
    """

    now_ms: int
    seconds: int
    all: Row
    tables: dict[str, list[Row]] = field(default_factory=dict)
    concurrent_plays: int | None = None
    newest_ms: int | None = None


def look(nodes: Nodes, now_ms: int, seconds: int) -> Seen:
    """``SinkBusy`` where no answer comes."""
    since = {"range": {"@timestamp": {"gte": now_ms - 1_000 * seconds, "lte": now_ms + CLOCKS_MS}}}
    terms = {name: {"terms": {"field": name, "size": VALUES_MAX, "missing": UNKNOWN}} for name in DIMENSIONS}
    newest = {"newest": {"max": {"field": "@timestamp"}}}
    alerts = _asked(nodes, ALERTS, since, {**terms, **newest, "count": {"value_count": {"field": "@timestamp"}}})
    sums = {name: {"sum": {"field": name}} for name in SUMS}
    filters = [since, {"term": {"window_ms": WINDOW_MS}}, {"terms": {"cohort": [ALL, *DIMENSIONS]}}]
    worst = {"size": VALUES_MAX, "order": {"stall_ms": "desc"}}
    by = {name: _only(name, {"by": {"terms": {"field": name, **worst}, "aggs": sums}}) for name in DIMENSIONS}
    everybody = _only(ALL, {**sums, "playing": {"max": {"field": "concurrent_plays"}}})
    cohorts = _asked(nodes, COHORTS, {"bool": {"filter": filters}}, {**by, **newest, ALL: everybody})
    own, playing = _sums(cohorts.get(ALL, {})), cohorts.get(ALL, {}).get("playing", {}).get("value")
    seen = [said["newest"]["value"] for said in (alerts, cohorts) if said.get("newest", {}).get("value") is not None]
    return Seen(
        now_ms, seconds, _row(ALL, int(alerts.get("count", {}).get("value") or 0), own),
        {name: _ranked(name, alerts, cohorts, own) for name in DIMENSIONS},
        None if playing is None else int(playing),
        int(max(seen)) if seen else _last_ms(nodes, now_ms),
    )  # fmt: skip


def _ranked(name: str, alerts: Row, cohorts: Row, everybody: Row) -> list[Row]:
    counted = {bucket["key"]: bucket["doc_count"] for bucket in alerts.get(name, {}).get("buckets", [])}
    summed = {bucket["key"]: _sums(bucket) for bucket in cohorts.get(name, {}).get("by", {}).get("buckets", [])}
    usual = ratios(everybody).get("rebuffering_ratio", 0.0)

    def badness(value: str) -> float:
        own = summed.get(value, {})
        stalled = own.get("stall_ms", 0)
        return float((stalled + PRIOR_MS * usual) / (stalled + own.get("played_ms", 0) + PRIOR_MS))

    values = sorted(counted.keys() | summed.keys(), key=lambda value: (-badness(value), -counted.get(value, 0), value))
    return [_row(value, counted.get(value, 0), summed.get(value, {})) for value in values]


def _row(value: str, alerts: int, sums: Row) -> Row:
    shown = ratios(sums)
    return {"value": value, "alerts": alerts, **{ratio: shown.get(ratio) for ratio in RATIOS}, "attempts": sums.get("attempts")}


def _sums(bucket: Row) -> Row:
    return {name: int(bucket[name]["value"]) for name in SUMS if name in bucket}


def _only(name: str, aggs: Row) -> Row:
    """Of rows whose cohort is of this dimension alone: those of pairs would count twice."""
    return {"filter": {"term": {"cohort": name}}, "aggs": aggs}


def _last_ms(nodes: Nodes, now_ms: int) -> int | None:
    """Of a stream that stands still: when it last said anything."""
    query = {"size": 1, "_source": False, "query": {"range": {"@timestamp": {"lte": now_ms + CLOCKS_MS}}}, "sort": [{"@timestamp": "desc"}]}
    found = [_searched(nodes, kind, query, "hits.hits.sort") for kind in (ALERTS, COHORTS)]
    return max((int(hit["sort"][0]) for said in found for hit in said.get("hits", {}).get("hits", [])), default=None)


def _asked(nodes: Nodes, kind: str, query: Row, aggs: Row) -> Row:
    return dict(_searched(nodes, kind, {"size": 0, "query": query, "aggs": aggs}, "aggregations").get("aggregations", {}))


def _searched(nodes: Nodes, kind: str, body: Row, wanted: str) -> Row:
    reply = nodes.request("POST", f"/{pattern(kind)}/_search?ignore_unavailable=true&filter_path={wanted}", orjson.dumps(body))
    if reply.status != 200:
        raise trouble_of(reply)
    return dict(reply.json())
