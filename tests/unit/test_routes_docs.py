"""docs/routes.md: its examples are routes, its lists are the program's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import polars as pl
import pytest

from keystone.config import Config, RouteConfig
from keystone.errors import UsageError
from keystone.events import DIMENSIONS
from keystone.routes import NAMED_SINKS, compile_routes
from keystone.routes_sources import SOURCES, schemas
from keystone.routes_words import FUNCTIONS, TYPES
from keystone.sinks.route_sinks import sink_rules

TEXT = (Path(__file__).parents[2] / "docs" / "routes.md").read_text("utf-8")
RULES = sink_rules(("elastic", "lake", "actions", "dead_letters"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str, str]]:
    """(where or select, source, SQL) of every line."""
    found = []
    for block in blocks("sql"):
        head, *lines = block.splitlines()
        match = re.fullmatch(r"-- (where|select), from (\w+)", head)
        assert match is not None, head
        found += [(match[1], match[2], line) for line in lines]
    return found


@pytest.mark.parametrize(("part", "source", "sql"), examples())
def test_every_example_of_sql_is_a_route(part: str, source: str, sql: str) -> None:
    route = compile_routes([RouteConfig.model_validate({"name": "r", "from": source, part: sql, "sink": "console"})], RULES).active[0]
    rows = pl.DataFrame([dict.fromkeys(route.schema_in)] * 3, schema=route.schema_in)
    assert route.apply(rows).schema == route.schema
    assert route.errors == {}


def test_there_are_examples_of_both() -> None:
    assert {part for part, _, _ in examples()} == {"where", "select"}
    assert len(examples()) > 10


def test_the_configuration_is_one_and_the_mistake_is_told_as_shown() -> None:
    (text,) = blocks("toml")
    config = Config.model_validate(tomllib.loads(text))
    routes = compile_routes(config.routes, RULES)
    assert [route.name for route in routes.active if not route.is_default] == ["vip-stalls", "dashboards-of-europe"]
    assert "dashboards-sessions" not in [route.name for route in routes.active]
    first = config.routes[0]
    wrong = first.model_copy(update={"where": (first.where or "").replace("cdn", "cdm", 1)})
    with pytest.raises(UsageError) as told:
        compile_routes([wrong], RULES)
    assert f"keystone: {told.value}\n" in TEXT


def row_of(name: str) -> str:
    """The first of its rows: sources come before sinks, and two have one name."""
    return str(re.findall(rf"^\| `{name}` \|.*$", TEXT, re.MULTILINE)[0])


def test_every_source_is_there_with_its_columns() -> None:
    dimensions = Config().cohorts.dimensions
    for source in SOURCES:
        row = row_of(source)
        missing = {name for name in schemas(dimensions)[source] if name not in DIMENSIONS and f"`{name}`" not in row}
        if source == "cohorts":  # its sums are named where they are defined
            missing = {name for name in missing if name.endswith("_ratio") or name in ("revision", "window_ms", "window_start_ms")}
        assert not missing, source


def test_every_sink_is_there_with_what_it_takes() -> None:
    for sink in NAMED_SINKS:
        cells = [cell.strip() for cell in re.findall(rf"^\| `{sink}` \|.*$", TEXT, re.MULTILINE)[-1].split("|")]
        rule = RULES[sink]
        takes = set(re.findall(r"`(\w+)`", cells[2])) or set(SOURCES)
        assert takes == set(rule.sources), sink
        assert (cells[3] == "yes", cells[4] != "no") == (bool(rule.filters & rule.sources), bool(rule.shapes & rule.sources)), sink


def test_every_function_and_type_is_there() -> None:
    listed = re.search(r"^- Functions: `([^`]+)`", TEXT, re.MULTILINE)
    assert listed is not None
    assert set(listed[1].split()) == set(FUNCTIONS)
    types = re.search(r"CAST\(x AS ([^)]+)\)", TEXT)
    assert types is not None
    assert set(types[1].split(" | ")) <= set(TYPES)
