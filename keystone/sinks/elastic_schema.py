"""Indices and their mappings: what Elasticsearch 8 and 9 and OpenSearch 3 all take, and nothing that one of them lacks.

One index a kind and UTC day, ``keystone-alerts-2026.11.24``, the day by the rule for ``event_date`` (SPEC 5: broken clocks make no
index). Mappings are strict and name every field: what a device sends never becomes a mapping.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from functools import lru_cache
from typing import Any, Final

import orjson

from keystone.events import DIMENSIONS
from keystone.sinks.base import ALERTS, COHORTS, SESSIONS

#: Kinds that have indices. Events and dead letters have none: there are too many of them, and the lake answers for them.
INDEXED_KINDS: Final = (ALERTS, SESSIONS, COHORTS)
INDEX_NAME: Final = re.compile(rf"keystone-({'|'.join(INDEXED_KINDS)})-([0-9]{{4}})\.([0-9]{{2}})\.([0-9]{{2}})")
VERSION: Final = 1  # of templates and mappings: raised with every change of them (tests/unit/test_elastic_schema.py)
IGNORE_ABOVE: Final = 1_024  # characters of a keyword that is searchable; longer ones are kept in the document. Lucene's limit is 32,766 bytes
#: Of SPEC 4, as ``keystone.qoe`` names them.
COHORT_DIMENSIONS: Final = ("region", "device_type", "cdn", "isp", "app_version", "country")
COHORT_SUMS: Final = (
    "events", "attempts", "plays", "stalls", "stall_ms", "played_ms", "startups", "startup_ms_sum", "heartbeats",
    "bitrate_count", "bitrate_kbps_sum", "ended", "ebvs", "vsf", "vpf", "alerts", "concurrent_plays",
)  # fmt: skip
COHORT_SHOWN: Final = ("startup_ms_p50", "startup_ms_p95", "rebuffering_ratio", "ebvs_ratio", "vsf_ratio", "vpf_ratio")
DATE: Final = {"type": "date", "format": "epoch_millis"}
KEYWORD: Final = {"type": "keyword", "ignore_above": IGNORE_ABOVE}
LONG: Final = {"type": "long"}
DOUBLE: Final = {"type": "double"}

FIELDS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    ALERTS: {
        "@timestamp": DATE,  # log time: when it was appended
        **dict.fromkeys(("alert_id", "kind", "action", "device_id", "session_id", *DIMENSIONS), KEYWORD),
        "event_ts": DATE,  # the device's clock
        **dict.fromkeys(("seq", "buffers_in_run", "bitrate_kbps", "recommended_bitrate_kbps", "partition"), LONG),
    },
    SESSIONS: {
        "@timestamp": DATE,  # its end, where the device's clock is believed, else when it was closed
        **dict.fromkeys(("device_id", "session_id", "end_reason", "outcome", *DIMENSIONS), KEYWORD),
        **dict.fromkeys(("start_ts", "end_ts"), DATE),
        **dict.fromkeys(
            ("duration_ms", "playing_ms", "startup_ms", "stall_ms", "events", "buffers", "errors", "duplicates", "late", "alerts"), LONG
        ),
        "mean_bitrate_kbps": DOUBLE,
    },
    COHORTS: {
        "@timestamp": DATE,  # the window's start
        "cohort": KEYWORD,  # names of its dimensions, sorted, joined by "+"; "all" without any
        **dict.fromkeys(COHORT_DIMENSIONS, KEYWORD),
        **dict.fromkeys(("window_start_ms", "window_ms", "revision", *COHORT_SUMS), LONG),
        **dict.fromkeys(COHORT_SHOWN, DOUBLE),
    },
}  # fmt: skip
#: How soon a document can be found. 200 ms: an alert within 0.17 s at the median, 0.32 s at p99 (1 s: 0.58 and 1.06). It costs the server 0.44 of a
#: core rather than 0.35 at 20 alerts/s, 83 us a document rather than 65 at its limit (benchmarks/results/elastic.json).
REFRESH: Final = {ALERTS: "200ms", SESSIONS: "5s", COHORTS: "1s"}


def template_name(kind: str) -> str:
    return f"keystone-{kind}"


def pattern(kind: str) -> str:
    return f"keystone-{kind}-*"


def template(kind: str) -> dict[str, Any]:
    """The body of an index template. ``_meta.digest``, the mappings' too, is that of everything else in it."""
    settings = {
        "number_of_shards": 1,  # 1,000,000 alerts a day at ~570 B of JSON each; a shard takes tens of GB
        "auto_expand_replicas": "0-1",  # one node is green too
        "refresh_interval": REFRESH[kind],
    }
    mappings = {"dynamic": "strict", "properties": FIELDS[kind]}
    body: dict[str, Any] = {
        "index_patterns": [pattern(kind)],
        "priority": 200,  # above the templates that come with the servers: these have 100 at most
        "version": VERSION,
        "template": {"settings": settings, "mappings": mappings},
    }
    digest = hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
    meta = {"made_by": "keystone", "digest": digest}
    return body | {"_meta": meta, "template": {"settings": settings, "mappings": mappings | {"_meta": meta}}}


@lru_cache(maxsize=1_024)
def index_of(kind: str, day: int) -> str:
    """The index of a day since the epoch."""
    return f"keystone-{kind}-{dt.date.fromordinal(dt.date(1970, 1, 1).toordinal() + day):%Y.%m.%d}"


def day_of(index: str) -> dt.date | None:
    """The day of an index of ours; None for any other name."""
    match = INDEX_NAME.fullmatch(index)
    try:
        return dt.date(*map(int, match.groups()[1:])) if match else None
    except ValueError:
        return None
