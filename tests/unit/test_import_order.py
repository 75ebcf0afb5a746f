"""Imports point down (docs/ARCHITECTURE.md), and the core can be used without Ray and Kafka."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "keystone"

COHORTS = {"qoe", "qoe_bins", "qoe_bytes", "qoe_rows", "qoe_merge", "cohort_snapshot", "cohort_state"}
ROUTES = {"routes", "routes_check", "routes_sources", "routes_sql", "routes_words"}

#: From the bottom up. A module may import from its own layer and from those before it.
LAYERS = (
    {"events", "errors", "clock", "kernels", "partition"},
    {"config", "metrics", "mappings", "logs", "logs_lines", "logs_writer", "segments", "store", "store_objects", "buckets"},
    {"decode", "letter_batch", "session_snapshot", "session_state", "session_records", "sessions", "detect", "anomaly", *COHORTS},
    {*ROUTES, "pipeline", "checkpoint", "checkpoint_format", "ownership", "balance"},
    {"log", "sinks", "sim", "testing"},
    {"actors"},
    {"audit", "bench", "capacity", "replay", "report", "run", "web", "cli", "__main__"},
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}

#: Who alone may import a heavy library: everything else stays usable, and quick to start, without it.
ONLY_IMPORTERS = {"ray": {"actors", "bench"}, "kafka": {"log"}, "pyiceberg": {"sinks"}}


@cache
def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    """The module or package right below ``keystone`` that ``path`` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imported(path: Path) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of everything that ``path`` imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


@cache
def ours(path: Path) -> list[tuple[int, str]]:
    """The same, of our own modules only, each cut to the module itself (``keystone.log.base.LogReader`` names a class)."""
    known = {dotted(module) for module in modules()}
    found = []
    for line, name in imported(path):
        module = name
        while module not in known and "." in module:
            module = module.rpartition(".")[0]
        if module in known:
            found.append((line, module))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_a_module_has_a_layer_and_imports_from_below(path):
    part = part_of(path)
    assert part in LAYER_OF, f"{path.name}: give {part} its place in LAYERS and in docs/ARCHITECTURE.md"
    for line, name in ours(path):
        other = name.split(".")[1]
        assert LAYER_OF[other] <= LAYER_OF[part], f"{dotted(path)}, line {line}: imports {name}, which lies above it"


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in modules() if part_of(path) == "kernels"], ids=dotted)
def test_kernels_import_of_ours_only_what_their_cache_is_keyed_on(path):
    for line, name in ours(path):
        assert name.startswith("keystone.kernels") or name == "keystone.events", f"{dotted(path)}, line {line}: {name} is not in the cache's key"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_numba_is_called_by_kernels_only(path):
    if part_of(path) != "kernels":
        assert [line for line, name in imported(path) if name.split(".")[0] in {"numba", "llvmlite"}] == []


@pytest.mark.parametrize("library", ONLY_IMPORTERS)
def test_heavy_libraries_have_few_importers(library):
    users = {part_of(path) for path in modules() if any(name.split(".")[0] == library for _, name in imported(path))}
    assert users <= ONLY_IMPORTERS[library]


def test_only_the_kafka_log_knows_kafka_python():
    users = {dotted(path) for path in modules() if any(name.split(".")[0] == "kafka" for _, name in imported(path))}
    assert {user for user in users if not user.startswith("keystone.log.kafka")} == set()


@pytest.mark.slow
def test_no_module_imports_itself_in_a_circle():
    graph = {dotted(path): {name for _, name in ours(path)} - {dotted(path)} for path in modules()}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_layers_name_only_what_exists_or_is_designed():
    assert len(LAYER_OF) == sum(len(names) for names in LAYERS)
    designed = {"anomaly", "testing", "web", "replay"}
    there = {part_of(path) for path in modules()}
    assert set(LAYER_OF) - designed <= there


@pytest.mark.slow
def test_the_core_loads_neither_ray_nor_kafka():
    program = "import sys, keystone.pipeline; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert answer.returncode == 0, answer.stderr
    loaded = set(answer.stdout.split())
    assert "keystone" in loaded
    assert loaded & {"ray", "kafka", "rich", "click"} == set()
