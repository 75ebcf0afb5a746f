"""Laws of routes: a row's fate is its own, whatever the frame it comes in, and what is unforeseen in one harms no other."""

from __future__ import annotations

import itertools
import math
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keystone.config import RouteConfig
from keystone.errors import UsageError
from keystone.routes import Route, compile_routes
from keystone.routes_sources import ALERT_SCHEMA, ALERTS, schemas
from keystone.routes_words import FUNCTIONS
from keystone.sinks.route_sinks import sink_rules
from tests.examples import examples

RULES = sink_rules(("elastic", "lake", "actions", "dead_letters"))
TEXTS = st.one_of(
    st.none(),
    st.sampled_from(["", "eu", "us", "EU", "7", "-1.5", "1e999", "NaN", "\0", "'\";--", "%", "_", '}\n{"delete"', "\u2028", "é", "\U0001f600", "x" * 5_000]),
    st.text(max_size=8),
)
WHOLES = st.one_of(st.none(), st.sampled_from([0, 1, -1, (1 << 53) + 1, (1 << 63) - 1, -(1 << 63)]), st.integers(-(1 << 63), (1 << 63) - 1))
NARROW = st.one_of(st.none(), st.integers(-(1 << 31), (1 << 31) - 1))
KINDS = {pl.String(): TEXTS, pl.Int64(): WHOLES, pl.Int32(): NARROW}
USED = ("region", "country", "seq", "event_ts", "partition")
ROWS = st.lists(st.fixed_dictionaries({name: KINDS[ALERT_SCHEMA[name]] for name in USED}), max_size=12)

#: One of each function and operator, and a few of what people write.
EXPRESSIONS = (
    "ABS(seq)", "CEIL(seq / 7)", "CEILING(seq / 7)", "FLOOR(seq / 7)", "SIGN(seq)", "SQRT(seq)", "LN(seq)", "LOG10(seq)", "ROUND(seq / 3, 2)", "ROUND(seq / 3)",
    "MOD(seq, partition)", "GREATEST(seq, event_ts)", "LEAST(seq, 3, event_ts)", "COALESCE(region, country, '-')", "NULLIF(region, country)",
    "IFNULL(region, 'none')", "IF(seq > 1, region, 'x')", "UPPER(region)", "LOWER(region)", "LENGTH(region)", "CHAR_LENGTH(region)", "OCTET_LENGTH(region)",
    "TRIM(region)", "LTRIM(region)", "RTRIM(region)", "REVERSE(region)", "LEFT(region, 2)", "LEFT(region, -1)", "RIGHT(region, 2)", "SUBSTR(region, 2, 3)",
    "SUBSTRING(region, -2)", "REPLACE(region, 'e', '')", "STRPOS(region, 'u')", "STARTS_WITH(region, country)", "ENDS_WITH(region, 'u')",
    "REGEXP_LIKE(region, '^[a-f].*')", "CONCAT(region, '-', seq)", "region || seq || country", "seq + partition * 2 - event_ts", "seq / event_ts",
    "seq / 3", "seq // 1000", "seq % 7", "-seq", "CAST(region AS BIGINT)", "CAST(seq AS INTEGER)", "CAST(seq AS SMALLINT)", "CAST(seq / 0 AS BIGINT)",
    "CAST(seq AS VARCHAR)", "CAST(region AS DOUBLE)", "TRY_CAST(seq AS REAL)", "CASE WHEN seq > 1 THEN region WHEN seq < -5 THEN country ELSE 'rest' END",
    "CASE region WHEN 'eu' THEN 1 WHEN 'us' THEN 2 END", "1.5 * seq", "'text'", "42", "seq > 1.5 AND region LIKE 'e%'", "(((seq)))",
)  # fmt: skip
CONDITIONS = (
    "TRUE", "FALSE", "region = 'eu'", "region <> country", "region < country", "seq > 1.5", "seq = event_ts", "seq >= -3 OR region IS NULL",
    "NOT region = 'eu'", "region IN ('eu', 'us', NULL)", "seq NOT IN (1, 2, 3)", "region LIKE '%u'", "region NOT LIKE '_'", "region ILIKE 'E%'",
    "region ~ '[0-9]'", "region !~ 'e'", "region ~* 'E'", "region !~* 'E'", "seq BETWEEN -5 AND event_ts", "seq NOT BETWEEN 0 AND 9",
    "region IS DISTINCT FROM country", "region IS NOT DISTINCT FROM NULL", "region IS NOT NULL AND seq / 0 > 1", "region = NULL", "STARTS_WITH(region, 'e')",
    "LENGTH(region) > 2 AND seq % 2 = 0", "region RLIKE '^.$'", "CASE WHEN seq > 0 THEN region = 'eu' ELSE country = 'eu' END",
)  # fmt: skip


def compiled(**given_: Any) -> Route:
    return compile_routes([RouteConfig.model_validate({"name": "r", "from": ALERTS, "sink": "console", **given_})], RULES).active[0]


BY_CONDITION = {sql: compiled(where=sql) for sql in CONDITIONS}
EVERYTHING = compiled(select=", ".join(f"{sql} AS c{number}" for number, sql in enumerate(EXPRESSIONS)))


def frame_of(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame([dict.fromkeys(ALERT_SCHEMA) | row for row in rows], schema=ALERT_SCHEMA)


def cut(frame: pl.DataFrame, places: list[int]) -> list[pl.DataFrame]:
    ends = sorted({min(place, frame.height) for place in places} | {0, frame.height})
    return [frame.slice(first, end - first) for first, end in itertools.pairwise(ends)] or [frame]


def same(left: pl.DataFrame, right: pl.DataFrame) -> bool:
    return left.schema == right.schema and left.equals(right, null_equal=True)


def test_every_function_is_among_those_that_are_tried() -> None:
    assert {name for name in FUNCTIONS if not any(f"{name}(" in sql for sql in (*EXPRESSIONS, *CONDITIONS))} == set()


@pytest.mark.slow
@given(rows=ROWS)
def test_a_route_without_sql_gives_everything(rows: list[dict[str, Any]]) -> None:
    frame = frame_of(rows)
    for route in (compiled(), compiled(select="*"), compiled(where="TRUE")):
        assert same(route.apply(frame), frame)
        assert route.routed(frame).rows.tolist() == list(range(frame.height))


@pytest.mark.slow
@given(rows=ROWS, places=st.lists(st.integers(0, 12), max_size=4))
@example(rows=[{"region": "eu", "country": None, "seq": 7, "event_ts": 3, "partition": 1}] * 3, places=[1])
def test_how_a_stream_is_cut_into_frames_changes_nothing(rows: list[dict[str, Any]], places: list[int]) -> None:
    frame = frame_of(rows)
    parts = cut(frame, places)
    assert same(pl.concat([EVERYTHING.apply(part) for part in parts]), EVERYTHING.apply(frame))
    for sql, route in BY_CONDITION.items():
        assert pl.concat([route.keep(part) for part in parts]).to_list() == route.keep(frame).to_list(), sql
    assert EVERYTHING.errors == {}


@pytest.mark.slow
@given(rows=ROWS)
def test_a_condition_and_its_negation_share_the_rows_for_which_it_is_not_unknown(rows: list[dict[str, Any]]) -> None:
    frame = frame_of(rows)
    for sql, route in BY_CONDITION.items():
        kept, others = route.keep(frame), compiled_negation(sql).keep(frame)
        unknown = compiled_unknown(sql).keep(frame)
        assert (kept.cast(pl.Int8) + others.cast(pl.Int8) + unknown.cast(pl.Int8)).to_list() == [1] * frame.height, sql


_MADE: dict[str, Route] = {}


def compiled_negation(sql: str) -> Route:
    return _MADE.setdefault(f"n{sql}", _MADE.get(f"n{sql}") or compiled(where=f"NOT ({sql})"))


def compiled_unknown(sql: str) -> Route:
    return _MADE.setdefault(f"u{sql}", _MADE.get(f"u{sql}") or compiled(where=f"({sql}) IS NULL"))


@pytest.mark.slow
@given(rows=ROWS, hostile=TEXTS, at=st.integers(0, 12))
def test_a_hostile_row_changes_nothing_but_itself(rows: list[dict[str, Any]], hostile: str | None, at: int) -> None:
    at = min(at, len(rows))
    extra = {"region": hostile, "country": hostile, "seq": -(1 << 63), "event_ts": (1 << 63) - 1, "partition": 0}
    without = EVERYTHING.apply(frame_of(rows))
    among = EVERYTHING.apply(frame_of([*rows[:at], extra, *rows[at:]]))
    assert same(pl.concat([among.slice(0, at), among.slice(at + 1)]), without)
    assert len(among.write_ndjson().encode().splitlines()) == len(rows) + 1


@pytest.mark.slow
@given(rows=ROWS)
def test_numbers_that_go_out_are_finite(rows: list[dict[str, Any]]) -> None:
    for name, dtype in EVERYTHING.schema.items():
        if dtype in (pl.Float32, pl.Float64):
            assert all(value is None or math.isfinite(value) for value in EVERYTHING.apply(frame_of(rows))[name]), name


PIECES = (
    "AND", "OR", "NOT", "IN", "(", ")", ",", "*", "=", "~", "||", "::", ";", ".", "--", "/*", "*/", "'", '"', "$1", "?", "@", "SELECT", "FROM", "CASE",
    "WHEN", "END", "IS", "NULL", "LIKE", "CAST", "AS",
)  # fmt: skip
SQL = st.one_of(st.text(max_size=40), st.lists(st.sampled_from([*CONDITIONS, *EXPRESSIONS, *PIECES]), max_size=8).map(" ".join))


@settings(max_examples=examples(300))
@given(sql=SQL, source=st.sampled_from(sorted(schemas(("region",)))), part=st.sampled_from(["where", "select"]))
def test_whatever_is_written_is_a_route_or_one_line_with_its_place(sql: str, source: str, part: str) -> None:
    try:
        route = compiled(**{"from": source, part: sql})
    except UsageError as error:
        text = str(error)
        assert text.startswith(f'keystone.toml: routes[0] "r" {part}, ')
        assert "column " in text
        assert len(text.splitlines()) == 1
        assert len(text) < 2_000
    else:
        assert route.apply(pl.DataFrame(schema=route.schema_in)).height == 0
