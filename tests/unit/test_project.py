"""What the project's own files promise to people who clone it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import keystone

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("requirements.lock", "requirements.txt", "deploy/requirements.lock")
DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/ARCHITECTURE.md",
    "docs/glossary.md",
    "docs/lake.md",
    "docs/operations.md",
    "docs/routes.md",
    "benchmarks/README.md",
    "deploy/README.md",
)
PYTHONS = ("3.11.0", "3.12.0", "3.13.0", "3.14.0")


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def requirements_of(lock: str) -> list[Requirement]:
    lines = (re.split(r" \\$|\s--hash|\s#", line)[0] for line in text_of(lock).splitlines())
    return [Requirement(line) for line in lines if line and line[0].isalnum()]


def pinned(lock: str, python: str) -> dict[str, Version]:
    """Name to the one version that the lock gives a Linux machine with this Python."""
    environment = {"python_full_version": python, "python_version": python.rpartition(".")[0], "sys_platform": "linux"}
    found: dict[str, Version] = {}
    for requirement in requirements_of(lock):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            assert canonicalize_name(requirement.name) not in found
            found[canonicalize_name(requirement.name)] = Version(pin.version)
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_name_no_registry_and_no_path(lock):
    for line in text_of(lock).splitlines():
        words = line.partition("#")[0].split()
        assert not any(
            "://" in word or word.startswith(("/", "./", "..", "file:", "-e", "-f", "-i", "--index", "--extra-index", "--find")) for word in words
        ), line
    assert "://" not in text_of(lock)


@pytest.mark.parametrize("lock", ["requirements.lock", "deploy/requirements.lock"])
def test_the_lock_has_a_hash_for_everything(lock):
    blocks = re.split(r"\n(?=[a-z0-9])", text_of(lock).strip())
    assert len(blocks) == len(requirements_of(lock)) > 30
    for block in blocks:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block.splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", LOCKS)
def test_locks_hold_what_the_project_asks_for(lock, python):
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    optional = project["optional-dependencies"]
    more = {"requirements.lock": [*groups["dev"], *optional["notebooks"]], "deploy/requirements.lock": optional["cluster"]}
    asked = project["dependencies"] + more.get(lock, [])
    versions = pinned(lock, python)
    for requirement in map(Requirement, asked):
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_locks_agree():
    for python in PYTHONS:
        own, developers, nodes = (pinned(lock, python) for lock in ("requirements.txt", "requirements.lock", "deploy/requirements.lock"))
        assert own.items() <= developers.items()
        assert own.items() <= nodes.items()
        assert all(developers[name] == nodes[name] for name in developers.keys() & nodes.keys())


def test_what_is_imported_is_asked_for():
    """An import that only a transitive dependency provides breaks on somebody else's machine."""
    notebooks = PROJECT["project"]["optional-dependencies"]["notebooks"]
    base = {canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["dependencies"]} | {"llvmlite"}  # a part of numba, pinned by it
    every = base | {canonicalize_name(Requirement(line).name) for line in notebooks}
    owners = importlib.metadata.packages_distributions()
    for path in (ROOT / "keystone").rglob("*.py"):
        asked = every if path.parent.name == "report" else base
        for name in re.findall(r"^\s*(?:import|from) ([a-z_0-9]+)", path.read_text("utf-8"), re.MULTILINE):
            if name not in {*sys.stdlib_module_names, "keystone"}:
                assert {canonicalize_name(owner) for owner in owners.get(name, ())} & asked, f"{path}: {name}"


def test_the_version_is_said_once():
    assert keystone.__version__ == importlib.metadata.version("keystone") == PROJECT["project"]["version"]


def test_the_console_script_is_installed():
    script = Path(sys.executable).with_name("keystone")
    answer = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert keystone.__version__ in answer.stdout


def test_ci_runs_what_the_readme_says():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    (command,) = re.findall(r"^exec (.+)$", script.read_text(), re.MULTILINE)
    shown = re.search(r"^(make test)\s+#", text_of("README.md"), re.MULTILINE)
    assert shown
    assert command == shown[1]


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS", "PYTHON"}}
    return subprocess.run(["make", "--no-print-directory", *arguments], cwd=ROOT, env={**outside, **variables}, capture_output=True, text=True, check=False)


def test_make_lists_every_command():
    listed = make().stdout
    phony = re.search(r"^\.PHONY: (.+)$", text_of("Makefile"), re.MULTILINE)
    assert phony
    assert {"setup", "bench", "test", "test-fast", "check", "help"} <= set(phony[1].split())
    for target in phony[1].split():
        assert re.search(rf"^  make {target} +\w", listed, re.MULTILINE), target


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("bench", "python -m keystone.bench --eps 1000000"),
        ("report", "python -m keystone.bench --eps 100000 --seconds 20 --report"),
        ("test", "python -m pytest -n 2 --dist loadscope --no-loadscope-reorder"),
        ("test-fast", 'pytest -n auto --dist loadfile --hypothesis-profile=fast -m "not slow and not ray and not kafka and not s3 and not search"'),
    ],
)
def test_commands_do_what_the_documents_say_and_set_themselves_up(target, command, tmp_path):
    planned = make("--dry-run", target, f"VENV={tmp_path}/venv", "WORKERS=2", PYTHON=sys.executable).stdout
    assert command in planned
    assert planned.index("-m venv") < planned.index("--require-hashes") < planned.index("--no-deps") < planned.index(command)


@pytest.mark.parametrize("python", ["", "/no/such/python"])
def test_without_a_python_setup_says_so_in_one_line(python, tmp_path):
    answer = make("setup", f"VENV={tmp_path}/venv", f"PYTHON={python}")
    assert answer.returncode != 0
    (line,) = [line for line in answer.stdout.splitlines() if line.startswith("make: ")]
    assert "3.11" in line
    assert "PYTHON=" in line
    assert not (tmp_path / "venv").exists()


def test_setup_costs_nothing_when_nothing_changed(tmp_path):
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / ".ready").touch()
    assert make("--dry-run", "setup", f"VENV={venv}").stdout.strip() in {"", "make: Nothing to be done for 'setup'."}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text_of(document)):
        assert (ROOT / document).parent.joinpath(target).exists(), target


@pytest.mark.parametrize(("document", "lines_max"), [("README.md", 150), ("docs/ARCHITECTURE.md", 200)])
def test_documents_stay_short(document, lines_max):
    assert len(text_of(document).splitlines()) <= lines_max


def test_every_module_has_its_place_in_the_architecture():
    rows = [line for line in text_of("docs/ARCHITECTURE.md").splitlines() if re.match(r"\| \d ", line)]
    named = {name.strip("/") for row in rows for name in re.findall(r"`([a-z_/]+)`", row)}
    there = {path.name.removesuffix(".py") for path in (ROOT / "keystone").iterdir() if path.name != "py.typed" and not path.name.startswith("__")}
    assert there <= named


def test_each_lint_exception_has_a_reason():
    table = text_of("pyproject.toml").partition("[tool.ruff.lint]")[2]
    for line in table.partition("[tool.mypy]")[0].splitlines():
        if re.match(r'\s+"[A-Z]+[0-9]*"', line):
            assert "#" in line, line


def test_the_license_is_the_apache_license():
    text = text_of("LICENSE")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
