"""Routes: what they take, what they refuse and how that is said, what they give."""

from __future__ import annotations

import pickle

import polars as pl
import pytest

from keystone.config import RouteConfig
from keystone.errors import UsageError
from keystone.events import ALERT_LOOP, DIMENSIONS, Alert, DeadLetter
from keystone.routes import DEFAULT_ROUTES, SINKS_TEXT, Route, Routes, compile_routes
from keystone.routes_check import Computed
from keystone.routes_sources import (
    ALERT_SCHEMA,
    ALERTS,
    DEAD_LETTERS,
    EVENT_SCHEMA,
    SESSION_COLUMNS,
    alerts_frame,
    cohort_schema,
    cohorts_frame,
    dead_letters_frame,
)
from keystone.sinks import lake_schema
from keystone.sinks.elastic_schema import FIELDS
from keystone.sinks.iceberg.columns import FILE_COLUMNS
from keystone.sinks.route_sinks import ADDED, sink_rules

EVERYTHING = ("elastic", "lake", "actions", "dead_letters")
ARROW_NAMES = {"string": pl.String, "int64": pl.Int64, "int32": pl.Int32, "bool": pl.Boolean, "double": pl.Float64}


def compiled(*routes: dict, available=EVERYTHING, log=None) -> Routes:
    return compile_routes([RouteConfig.model_validate(route) for route in routes], sink_rules(available, log=log))


def route(source=ALERTS, sink="console", **given) -> Route:
    return compiled({"name": "vip", "from": source, "sink": sink, **given}).active[0]


def refused(source=ALERTS, sink="console", available=EVERYTHING, log=None, **given) -> str:
    with pytest.raises(UsageError) as raised:
        compiled({"name": "vip", "from": source, "sink": sink, **given}, available=available, log=log)
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith('keystone.toml: routes[0] "vip" ')
    return text.removeprefix('keystone.toml: routes[0] "vip" ')


def alert(number: int = 0, **given) -> Alert:
    dimensions = dict.fromkeys(DIMENSIONS) | {name: value for name, value in given.items() if name in DIMENSIONS}
    own = {"seq": number, "bitrate_kbps": 3_000} | {name: value for name, value in given.items() if name not in DIMENSIONS}
    return Alert(
        alert_id=f"{number:032}", kind=ALERT_LOOP, device_id="d", session_id="s", event_ts=1_000 + number, buffers_in_run=3,
        recommended_bitrate_kbps=235, dimensions=dimensions, append_ts_ms=2_000 + number, **own,
    )  # fmt: skip


# --- what is there -------------------------------------------------------------------------------------------------


def test_columns_of_events_sessions_and_alerts_are_those_of_the_lake():
    for schema, columns in ((EVENT_SCHEMA, lake_schema.COLUMNS), (SESSION_COLUMNS, FILE_COLUMNS["sessions"]), (ALERT_SCHEMA, FILE_COLUMNS["alerts"])):
        assert schema == {column.name: ARROW_NAMES[column.type] for column in columns}


def test_every_field_of_the_index_is_a_column_or_made_by_the_sink():
    for source, schema in (
        ("alerts", ALERT_SCHEMA),
        ("sessions", SESSION_COLUMNS),
        ("cohorts", cohort_schema(("region", "device_type", "cdn", "isp", "app_version", "country"))),
    ):
        assert set(FIELDS[source]) - set(schema) <= set(ADDED)


def test_without_a_word_there_are_dashboards_lake_actions_and_dead_letters():
    routes = compiled()
    assert [(r.source, str(r.sink)) for r in routes.active] == [
        ("alerts", "elastic"), ("sessions", "elastic"), ("cohorts", "elastic"), ("events", "lake"), ("alerts", "lake"), ("sessions", "lake"),
        ("alerts", "actions"), ("dead_letters", "dead_letters"),
    ]  # fmt: skip
    assert all(r.is_identity and r.is_default for r in routes.active)
    assert routes.inactive == ()


def test_default_routes_to_what_a_run_does_not_have_are_inactive_with_the_reason():
    routes = compiled(available=("actions",))
    assert [r.name for r in routes.active] == ["actions"]
    assert {config.name: why for config, why in routes.inactive}["lake-events"] == "add --lake DIR or run.lake, or leave the route out"
    assert len(routes.inactive) == len(DEFAULT_ROUTES) - 1


def test_a_declared_route_takes_the_place_of_the_default_one_with_its_source_and_sink_and_of_no_other():
    routes = compiled({"name": "eu", "from": "alerts", "where": "region = 'eu'", "sink": "elastic"}, {"name": "screen", "from": "alerts", "sink": "console"})
    assert [r.name for r in routes.of("alerts")] == ["eu", "screen", "lake-alerts", "actions"]
    assert [r.name for r in routes.to("elastic")] == ["eu", "dashboards-sessions", "dashboards-cohorts"]


# --- what they give ------------------------------------------------------------------------------------------------


def test_where_keeps_the_rows_for_which_it_is_true_and_not_those_for_which_it_is_unknown():
    frame = alerts_frame([alert(0, region="eu"), alert(1, region="us"), alert(2)])
    assert route(where="region = 'eu'").keep(frame).to_list() == [True, False, False]
    assert route(where="NOT region = 'eu'").keep(frame).to_list() == [False, True, False]
    assert route(where="TRUE").keep(frame).to_list() == [True, True, True]
    assert route(where="region = NULL").keep(frame).to_list() == [False, False, False]


def test_routed_rows_name_the_rows_they_are_made_of():
    frame = alerts_frame([alert(n, region="eu" if n % 3 == 0 else "us") for n in range(10)])
    found = route(where="region = 'eu'", select="alert_id, UPPER(region) AS shown, 1 AS one").routed(frame)
    assert found.rows.tolist() == [0, 3, 6, 9]
    assert found.frame.to_dicts() == [{"alert_id": f"{n:032}", "shown": "EU", "one": 1} for n in (0, 3, 6, 9)]


def test_a_select_of_literals_has_as_many_rows_as_were_given():
    made = route(select="1 AS one, 'x' AS x")
    for rows in (0, 1, 2, 7):
        assert made.apply(alerts_frame([alert(n) for n in range(rows)])).rows() == [(1, "x")] * rows
    assert made.schema == {"one": pl.Int32, "x": pl.String}


def test_the_star_is_every_column_and_for_the_index_those_that_it_knows():
    assert list(route(select="*, UPPER(region) AS shown").schema) == [*ALERT_SCHEMA, "shown"]
    assert set(route(select="*", sink="elastic").schema) == set(ALERT_SCHEMA) - {"append_ts_ms"}


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_row_alone_is_divided_as_among_others(rows):
    """Polars multiplies a column with the inverse of a number, and divides a column of one row, or one that repeats a value."""
    shared = route(select="seq / 3 AS third")
    frame = alerts_frame([alert(7)] * rows)
    assert set(shared.apply(frame)["third"]) == set(shared.apply(alerts_frame([alert(7), alert(8)]))["third"][:1])
    assert set(shared.apply(pl.concat([frame, frame]))["third"]) == set(shared.apply(frame)["third"])


def test_infinity_and_not_a_number_become_null():
    frame = alerts_frame([alert(1), alert(-1), alert(0)])
    assert route(select="seq / 0 AS x").apply(frame)["x"].to_list() == [None, None, None]
    assert route(select="SQRT(seq) AS x").apply(frame)["x"].to_list() == [1.0, None, 0.0]


def test_a_cast_gives_null_where_a_value_does_not_fit():
    frame = alerts_frame([alert(0, region="7"), alert(1, region="eu"), alert(2), alert(3, region=str(1 << 70))])
    assert route(select="CAST(region AS BIGINT) AS n").apply(frame)["n"].to_list() == [7, None, None, None]
    assert route(select="CAST(seq AS VARCHAR) AS n").apply(frame)["n"].to_list() == ["0", "1", "2", "3"]


def test_columns_that_are_called_like_words_of_sql_are_columns():
    assert route("events", where='offset > 3 AND line = 0 AND "partition" = 1').keep(pl.DataFrame(schema=EVENT_SCHEMA)).to_list() == []


def test_dead_letters_are_text_and_lose_no_byte():
    frame = dead_letters_frame([DeadLetter(1, 2, 3, "invalid_utf8", 4, b"a\xff\n\\"), DeadLetter(0, 0, 0, "too_large", 2_000_000, b"x" * 70_000)])
    assert frame.row(0) == (1, 2, 3, "invalid_utf8", 4, "Yf8KXA==", "a\\xff\n\\")
    assert frame["text"].str.len_bytes()[1] == 64 << 10
    assert route(DEAD_LETTERS, where="reason = 'too_large' AND text LIKE 'xx%'").keep(frame).to_list() == [False, True]


def test_cohorts_have_their_ratios_whatever_columns_were_given():
    frame = cohorts_frame(pl.DataFrame({"window_start_ms": [0, 0], "stall_ms": [1, 0], "played_ms": [3, 0], "region": ["eu", None]}), ("region", "cdn"), 7)
    assert frame.schema == cohort_schema(("region", "cdn"))
    assert frame["rebuffering_ratio"].to_list() == [0.25, None]
    assert frame["revision"].to_list() == [7, 7]


# --- failing anyway ------------------------------------------------------------------------------------------------


class _Trouble(Exception):
    pass


def _failing(bad_seq):
    """A route whose condition raises for a batch with such a ``seq``, as no expression should that was tried out."""

    def check(series):
        if series.is_in(bad_seq).any():
            raise _Trouble("no such thing")
        return series > 2

    made = route(where="seq > 2")
    made.condition = Computed.made(ALERT_SCHEMA, [pl.col("seq").map_batches(check, return_dtype=pl.Boolean)])
    return made


def test_rows_on_which_a_route_fails_all_the_same_are_left_out_and_counted_and_no_others():
    made = _failing([5, 700])
    frame = alerts_frame([alert(n) for n in range(1_000)])
    assert made.routed(frame).rows.tolist() == [n for n in range(3, 1_000) if n not in (5, 700)]
    assert made.errors == {"where": 2}
    assert "no such thing" in made.last_error
    made.apply(frame)
    assert made.errors == {"where": 4}


@pytest.mark.slow
def test_where_everything_fails_the_tries_are_bounded():
    made = _failing(list(range(100_000)))
    frame = alerts_frame([alert(n) for n in range(5_000)])
    assert made.apply(frame).height == 0
    assert made.errors == {"where": 5_000}


def test_routes_travel_to_other_processes():
    made = pickle.loads(pickle.dumps(compiled({"name": "a", "from": "alerts", "where": "region = 'eu'", "select": "seq / 3 AS x", "sink": "console"})))
    assert made.active[0].apply(alerts_frame([alert(6, region="eu")]))["x"].to_list() == [2.0]


# --- what is refused, and how that is said ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("regoin = 'eu'", 'column 1: there is no column "regoin": did you mean "region"?'),
        ("seq > 1 AND\n  sequ = 1", 'line 2, column 3: there is no column "sequ": did you mean "seq"?'),
        ("Region = 'eu'", 'column 1: there is no column "Region": did you mean "region"?'),
        ('region = "eu"', 'column 10: there is no column "eu" (text stands in single quotes): choose among alert_id, '),
        ("seq > 3 AND (region = 1 OR seq = 2)", "column 14: region = 1: cannot compare string with numeric type (i32) (region is a text, 1 is a whole number)"),
        ("UPPER(seq) = 'X'", "column 1: UPPER(seq): "),
        ("region", "column 1: region is a text, and a condition is true or false: compare it with something"),
        ("NULL", "column 1: NULL is always null, and a condition"),
        ("seq AND TRUE", "column 1: seq is a whole number, and AND takes conditions"),
        ("NOT seq", "column 5: seq is a whole number, and NOT takes conditions"),
        ("seq = TRUE", "column 1: seq = TRUE: compares a flag with a whole number"),
        ("seq BETWEEN 1 AND 'x'", "column 1: seq BETWEEN 1 AND 'x': cannot compare string"),
        ("CASE WHEN seq THEN TRUE END", "column 1: CASE WHEN seq THEN TRUE END: "),
        ("COUNT(*) > 1", "column 1: COUNT looks at several rows, and a route at one at a time"),
        ("seq > AVG(seq)", "column 7: AVG looks at several rows"),
        ("ROW_NUMBER() OVER (ORDER BY seq) = 1", "column 1: ROW_NUMBER looks at several rows"),
        ("ABS(seq) OVER () = 1", "column 10: OVER has no place here: a route looks at one row at a time"),
        ("region IN (SELECT region FROM alerts)", "column 12: SELECT has no place here"),
        ("EXISTS (SELECT 1)", "column 1: EXISTS has no place here"),
        ("region = 'x' LIMIT 3", "column 14: LIMIT has no place here"),
        ("region = 'x' ORDER BY seq", "column 14: ORDER has no place here"),
        ("NOW() > 3", "column 1: NOW has no place here: a route gives the same whenever it runs"),
        ("CURRENT_TIMESTAMP > 3", "column 1: CURRENT_TIMESTAMP has no place here"),
        ("RANDOM() > 3", "column 1: RANDOM has no place here"),
        ("flor(seq) = 1", 'column 1: there is no function flor: did you mean "FLOOR"?'),
        ("LOWER(region, 'x') = 'a'", "column 1: LOWER takes 1 argument, here are 2"),
        ("REGEXP_LIKE(region, country)", "column 21: argument 2 of REGEXP_LIKE must be a text in quotes or a number"),
        ("region LIKE country", "column 13: the pattern of LIKE must be a text in quotes"),
        ("region ~ '('", "column 1: region ~ '(': regex error"),
        ("seq // partition > 1", "column 8: // divides by a number above 0 only"),
        ("seq // -1 > 1", "column 8: // divides by a number above 0 only"),
        ("CAST(region AS DATE) = 3", "column 16: 'DATE' is no type to cast to: choose BIGINT, INTEGER, DOUBLE or VARCHAR"),
        ("REPLACE(region, '', 'x') = 'a'", "column 17: REPLACE of an empty text has no end"),
        ("region IN ('a', 1)", "column 17: IN takes values of one kind"),
        ("region IN ('a', country)", "column 17: country is no value"),
        ("region IN ()", "column 12: ')' has no place here"),
        ("seq IS TRUE", "column 8: 'TRUE' cannot follow IS"),
        ("seq NOT > 3", "column 9: '>' cannot follow NOT here"),
        ("'a' 'b' = region", "column 5: 'b' has no place here"),
        ("region = 'eu", "column 10: the text that begins here has no end"),
        ('"region = 1', "column 1: the name of a column that begins here has no end"),
        ("region = 'a'; DROP TABLE x", "column 13: ';' has no place here: a route is one expression, not a statement"),
        ("seq = 1 OR", "column 11: ends too early"),
        ("", "column 1: ends too early"),
        ("((seq = 1)", "column 11: ends where ) should stand"),
        ("seq = 9223372036854775808", "column 7: 9223372036854775808 is too large"),
        ("seq = 1e400", "column 7: 1e400 is too large"),
        ("seq = 0x1F", "column 7: '0' has no place here"),
        ("seq = ?", "column 7: '?' has no place here"),
        ("region = N'x'", "column 10: 'N' has no place here"),
        ("self.seq = 1", "column 5: '.' has no place here: a column stands there by its name alone"),
        ("GREATEST(seq, 'x') = 1", "column 1: GREATEST(seq, 'x'): "),
        ("[1, 2] = seq", "column 1: '[' has no place here: lists and structs are not read"),
    ],
)
def test_mistakes_in_where_are_one_line_with_the_place(sql, message):
    assert refused(where=sql).startswith(f"where, {message}")


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPPER(region)", "column 1: the column made here has no name: write UPPER(region) AS name"),
        ("region, region", 'column 9: "region" is there twice'),
        ("*, seq", 'column 4: "seq" is there twice'),
        ("region,", "column 8: ends too early"),
        ("seq region", "column 5: 'region' has no place here"),
        ("region AS 'x'", "column 11: 'x' is no name of a column"),
        ("NULL AS n", "column 1: NULL is always null, which no sink takes"),
        ("COUNT(*) AS n", "column 1: COUNT looks at several rows"),
        ("DISTINCT region", "column 1: DISTINCT has no place here"),
        ("SELECT region FROM sessions", "column 15: FROM has no place here"),
        ("region FROM alerts JOIN alerts", "column 20: JOIN has no place here"),
        ("regoin", 'column 1: there is no column "regoin"'),
    ],
)
def test_mistakes_in_select_are_one_line_with_the_place(sql, message):
    assert refused(select=sql).startswith(f"select, {message}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sink": "elstic"}, f"sink, column 1: there is no sink 'elstic': write {SINKS_TEXT}"),
        ({"sink": "https://me:secret@host/x"}, "sink, column 1: there is no sink 'https://...@host/x': write "),
        ({"source": "events", "sink": "elastic"}, "sink: elastic takes no events, only alerts, sessions, cohorts"),
        ({"source": "cohorts", "sink": "lake"}, "sink: lake takes no cohorts, only events, alerts, sessions"),
        ({"sink": "lake", "where": "TRUE"}, "where: lake takes alerts without where: it holds every accepted row, whole, and is checked for that"),
        ({"sink": "actions", "select": "*"}, "select: actions takes alerts without select: its receivers need the whole alert"),
        ({"source": "dead_letters", "sink": "dead_letters", "where": "TRUE"}, "where: dead_letters takes dead_letters without where: "),
        ({"sink": "elastic", "available": ()}, "sink: this run has no elastic: add --elastic URL, or leave the route out"),
        ({"sink": "lake", "available": ()}, "sink: this run has no lake: add --lake DIR or run.lake, or leave the route out"),
        ({"sink": "elastic", "select": "append_ts_ms"}, 'select, column 1: elastic has no field "append_ts_ms" for alerts: choose among alert_id, '),
        ({"sink": "elastic", "select": "alert_id, seq AS region"}, 'select, column 11: elastic has a text in the field "region", and this is a whole number'),
        ({"sink": "elastic", "select": "seq / 2 AS seq"}, 'select, column 1: elastic has a whole number in the field "seq", and this is a number'),
        ({"sink": "kafka://a"}, "sink: kafka://a: names no topic"),
        ({"sink": "kafka://a/t", "log": "kafka://a:9092,b/t"}, "sink: kafka://a/t: is the log that the run reads, and would read its own rows"),
        ({"sink": "kafka://user:x@a/t"}, "sink: a log's URL holds no user and no password"),
        ({"sink": "file:"}, "sink: file:: names no file"),
        ({"sink": "file:/"}, "sink: file:/: names no file"),
    ],
)
def test_sinks_that_cannot_take_what_a_route_gives_are_told(given, message):
    assert refused(**given).startswith(message)


def test_names_are_given_once():
    for name, message in (("vip", "name: an earlier route has it too"), ("actions", "name: a default route has it")):
        with pytest.raises(UsageError, match=message):
            compiled({"name": "vip", "from": "alerts", "sink": "none"}, {"name": name, "from": "alerts", "sink": "none"})


def test_two_routes_of_a_source_never_meet_where_a_row_may_come_once():
    pair = [{"name": "a", "from": "alerts", "where": "seq = 1", "sink": "actions"}, {"name": "b", "from": "alerts", "where": "seq > 0", "sink": "actions"}]
    with pytest.raises(UsageError, match='routes\\[1\\] "b" sink: "a" leads alerts to actions already'):
        compiled(*pair)
    with pytest.raises(UsageError, match='routes\\[1\\] "b" sink: "a" writes this file too'):
        compiled({"name": "a", "from": "alerts", "sink": "file:/tmp/x.ndjson"}, {"name": "b", "from": "sessions", "sink": "file:/tmp/x.ndjson"})
    assert len(compiled({"name": "a", "from": "alerts", "sink": "console"}, {"name": "b", "from": "alerts", "sink": "console"}).to("console")) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "sql",
    [
        "NOT " * 1_000 + "TRUE",
        "(" * 1_000 + "TRUE" + ")" * 1_000,
        "ABS(" * 500 + "seq" + ")" * 500 + " > 1",
        " AND ".join(["seq > 1"] * 900),
        "CASE " + " ".join(f"WHEN seq = {n} THEN TRUE" for n in range(300)) + " END",
        "seq" + " + 1" * 2_000 + " > 1",
        "x" * 1_000_000,
        "seq IN (" + ",".join(["1"] * 100_000) + ")",
    ],
    ids=lambda sql: sql[:12],
)
def test_what_would_overflow_the_stack_of_polars_never_gets_there(sql):
    assert any(part in refused(where=sql) for part in ("is nested deeper than 30", "has more than 100 operators", "is longer than 10,000 characters"))


@pytest.mark.slow
def test_what_is_just_within_the_limits_works():
    frame = alerts_frame([alert(n, region=f"r{n}") for n in range(600)])
    assert route(where=" OR ".join(["seq = 1"] * 50)).keep(frame).sum() == 1
    assert route(where=f"region IN ({', '.join(repr(f'r{n}') for n in range(500))})").keep(frame).sum() == 500
    assert route(where="(" * 28 + "seq = 1" + ")" * 28).keep(frame).sum() == 1
