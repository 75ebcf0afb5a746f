"""Configuration: what wins, and what a person reads who made a mistake."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from keystone.config import Config, load, origin_of_routes, setting_names, variable_of
from keystone.errors import UsageError


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "keystone.toml"
        path.write_text(text)
        return path

    return write


def test_defaults_read_nothing(tmp_path, monkeypatch):
    (tmp_path / "keystone.toml").write_text("[session]\ntimeout_ms = 77000\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYSTONE_SESSION__GRACE_MS", "5")
    assert Config().session.timeout_ms == 90_000
    assert Config().session.grace_ms == 10_000
    assert load(env={}).session.timeout_ms == 77_000  # load() does look here
    assert load().session.grace_ms == 5  # and into the environment


def test_without_any_file_the_defaults_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(env={}) == Config()


def test_flags_win_over_variables_over_file_over_defaults(file):
    path = file("[session]\ntimeout_ms = 20000\ngrace_ms = 1\nsessions_max = 10\n")
    env = {"KEYSTONE_SESSION__TIMEOUT_MS": "30000", "KEYSTONE_SESSION__GRACE_MS": "2", "HOME": "/"}
    session = load(path, env, {"session.timeout_ms": 40_000}).session
    assert (session.timeout_ms, session.grace_ms, session.sessions_max) == (40_000, 2, 10)


def test_the_file_may_be_named_by_a_variable_and_a_path_wins(file, tmp_path):
    named = file("[session]\ngrace_ms = 3\n")
    other = tmp_path / "other.toml"
    other.write_text("[session]\ngrace_ms = 4\n")
    env = {"KEYSTONE_CONFIG": str(named)}
    assert load(env=env).session.grace_ms == 3
    assert load(other, env).session.grace_ms == 4


def test_lists_in_variables_and_flags_are_json(file):
    env = {"KEYSTONE_DETECTION__LADDER_KBPS": "[100, 200]"}
    assert load(file(""), env).detection.ladder_kbps == (100, 200)
    assert load(file(""), env, {"detection.ladder_kbps": "[7]"}).detection.ladder_kbps == (7,)


@pytest.mark.slow
def test_every_setting_can_be_given_in_the_file_by_variable_and_by_flag(file):
    defaults = Config().model_dump()
    names = [name for name in setting_names() if name != "routes"]  # a list of tables, not a table
    assert len(names) == sum(len(table) for name, table in defaults.items() if name != "routes")
    for name in names:
        table, leaf = name.split(".")
        value = defaults[table][leaf]
        if value is None:  # cannot be written, only left out
            continue
        written = json.dumps(value)
        assert load(file(f"[{table}]\n{leaf} = {written}\n"), {}) == Config()
        assert load(file(""), {variable_of(name): value if isinstance(value, str) else written}) == Config()
        assert load(file(""), {}, {name: value}) == Config()


def test_routes_are_tables_of_a_list(file):
    path = file(
        '[[routes]]\nname = "vip"\nfrom = "alerts"\nwhere = "region = \'eu\'"\nsink = "console"\n[[routes]]\nname = "all"\nfrom = "events"\nsink = "none"\n'
    )
    config = load(path, {})
    assert [(route.name, route.source, route.where, route.select, route.sink) for route in config.routes] == [
        ("vip", "alerts", "region = 'eu'", None, "console"),
        ("all", "events", None, None, "none"),
    ]
    assert pickle.loads(pickle.dumps(config)) == config
    env = {"KEYSTONE_ROUTES": '[{"name": "x", "from": "alerts", "sink": "none"}]'}
    assert [route.name for route in load(path, env).routes] == ["x"]
    assert (origin_of_routes(path, {}), origin_of_routes(None, {}), origin_of_routes(path, env)) == (str(path), "keystone.toml", "KEYSTONE_ROUTES")


@pytest.mark.parametrize("text", ['"keystone.log" = "debug"', 'keystone.log = "debug"', '"keystone" = {log = "debug"}'])
def test_a_setting_may_be_a_table(file, text):
    path = file(f'[logs]\nlevel = "error"\n[logs.levels]\nray = "info"\n{text}\n')
    config = load(path, {})
    assert (config.logs.level, config.logs.levels) == ("error", {"ray": "info", "keystone.log": "debug"})
    assert pickle.loads(pickle.dumps(config)) == config  # as it goes to actors
    assert json.loads(config.model_dump_json())["logs"]["levels"] == {"ray": "info", "keystone.log": "debug"}


def test_a_table_is_json_in_variables_and_flags_and_replaces_the_one_below(file):
    path = file('[logs.levels]\nray = "info"\n')
    env = {"KEYSTONE_LOGS__LEVELS": '{"asyncio": "error"}'}
    assert load(path, {}).logs.levels == {"ray": "info"}
    assert load(path, env).logs.levels == {"asyncio": "error"}
    assert load(path, env, {"logs.levels": '{"keystone.log": "debug"}'}).logs.levels == {"keystone.log": "debug"}
    assert load(path, env, {"logs.levels": {}}).logs.levels == {}
    with pytest.raises(UsageError, match=r"^logs\.levels\.ray is no setting: did you mean logs\.levels\?$"):
        load(path, env, {"logs.levels.ray": "debug"})


def test_the_tree_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Config().session.timeout_ms = 1


def test_a_tree_built_in_code_refuses_unknown_names():
    with pytest.raises(ValidationError, match="timeout_s"):
        Config(session={"timeout_s": 1})


MISTAKES_IN_FILES = [
    ("[session]\ntimeout_s = 5", r"session\.timeout_s is no setting: did you mean session\.timeout_ms\?"),
    ("[session]\nxyz = 5", r"session\.xyz is no setting: remove it, or choose one of session\.timeout_ms, session\.grace_ms, session\.sessions_max$"),
    ("[sesion]\ntimeout_ms = 5", r"sesion is no setting: did you mean session\?$"),
    ("[routes]\nname = 'a'", r"routes = .* must be a list of tables: write \[\[routes\]\], in two brackets, above each$"),
    ("routes = ['a']", r"routes\.0 = 'a' must be a table: write \[\[routes\]\] on a line of its own"),
    ("[[routes]]\nname = 'a'\nfrom = 'alerts'\nsinc = 'none'", r"routes\.0 = .* has sinc, which is no key of a route: did you mean sink\?$"),
    ("[[routes]]\nname = 'a'\nsink = 'none'", r"routes\.0 = .* lacks from: a route has name, from and sink, and may have where and select$"),
    ("[[routes]]\nname = 'a b'\nfrom = 'alerts'\nsink = 'none'", r"routes\.0\.name = 'a b' "),
    (
        "[[routes]]\nname = 'a'\nfrom = 'alert'\nsink = 'none'",
        r"routes\.0\.from = 'alert' must be 'events', 'alerts', 'sessions', ",
    ),
    ("[outputs]\nport = 5", r"outputs is no setting: remove it, or choose one of session\.\*, detection\.\*, lake\.\*(, \w+\.\*)*, routes$"),
    ("timeout_ms = 5", r"timeout_ms is no setting: did you mean session\.timeout_ms\?$"),
    ("[session]\ntimeout_ms = 'abc'", r"session\.timeout_ms = 'abc' must be a valid integer"),
    ("[session]\ntimeout_ms = -1", r"session\.timeout_ms = -1 must be greater than 0$"),
    ("[session.timeout_ms]\na = 3", r"session\.timeout_ms = \{'a': 3\} must be a valid integer$"),
    ("session = 3", r"session = 3 is a table, not a value: write \[session\]"),
    ("[detection]\nladder_kbps = [300, 200]", r"detection\.ladder_kbps = \[300, 200\] must list rising bitrates, each once$"),
    ("[detection]\nladder_kbps = []", r"detection\.ladder_kbps = \[\] must list rising bitrates"),
    ("[detection]\nladder_kbps = [1, 'x']", r"detection\.ladder_kbps\.1 = 'x' must be a valid integer"),
    ("[logs]\nlevels = 3", r"logs\.levels = 3 must be a table such as \{kafka = "),
    ("[logs.levels]\nkafka = 'trace'", r"logs\.levels\.kafka = 'trace' must be 'debug', 'info', 'warning', 'error' or 'critical'$"),
    ("[logs.levels]\nkeystone.log = 5", r"logs\.levels\.keystone\.log = 5 must be 'debug'"),
    ("[logs.levels]\nkafka.conn = 'debug'", r"would write passwords and payloads, which kafka-python shows at debug: choose info or above for kafka$"),
    ("[logs.levls]\nkafka = 'info'", r"logs\.levls is no setting: did you mean logs\.levels\?$"),
    ("[logs]\nlevel = 'trace'", r"logs\.level = 'trace' must be 'debug', 'info', 'warning' or 'error'$"),
    ("[logs]\nqueue_records_max = 0", r"logs\.queue_records_max = 0 must be greater than 0$"),
    ("a =", r"is not TOML: "),
    ("[session]\ntimeout_ms = 5", r"session\.timeout_ms = 5 must exceed detection\.open_stall_ms = 10000: raise timeout_ms, or "),
    ("[lake]\nfile_rows_max = 5", r"lake\.file_rows_max = 5 must be at least lake\.row_group_rows = 131072: lower row_group_rows"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES_IN_FILES, ids=[text.replace("\n", " ") for text, _ in MISTAKES_IN_FILES])
def test_a_mistake_in_the_file_is_told_in_one_line(file, text, message):
    path = file(text)
    with pytest.raises(UsageError) as caught:
        load(path, {})
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert re.search(message, line)


MISTAKES_IN_VARIABLES = [
    ("KEYSTONE_TYPO", "1", r"^KEYSTONE_TYPO is no setting: remove it, or choose one of KEYSTONE_SESSION__\*, .*KEYSTONE_CONFIG, KEYSTONE_CACHE_DIR$"),
    ("KEYSTONE_CONFG", "1", r"^KEYSTONE_CONFG is no setting: did you mean KEYSTONE_CONFIG\?$"),
    ("KEYSTONE_SESSION__TIMEOUT", "1", r"^KEYSTONE_SESSION__TIMEOUT is no setting: did you mean KEYSTONE_SESSION__TIMEOUT_MS\?$"),
    ("KEYSTONE_SESSION__TIMEOUT_MS", "1x", r"^KEYSTONE_SESSION__TIMEOUT_MS: session\.timeout_ms = '1x' must be a valid integer"),
    ("KEYSTONE_SESSION__TIMEOUT_MS", "", r"^KEYSTONE_SESSION__TIMEOUT_MS: session\.timeout_ms = '' must be a valid integer"),
    ("KEYSTONE_LOGS__LEVELS", '{"kafka": "info"', r"^KEYSTONE_LOGS__LEVELS: logs\.levels = .* must be a table such as .* JSON: "),
    ("KEYSTONE_LOGS__LEVELS__KAFKA", "info", r"^KEYSTONE_LOGS__LEVELS__KAFKA is no setting: did you mean KEYSTONE_LOGS__LEVELS\?$"),
    ("KEYSTONE_DETECTION__LADDER_KBPS", "[1, 2", r"^KEYSTONE_DETECTION__LADDER_KBPS: detection\.ladder_kbps = '\[1, 2' must be a valid tuple"),
]


@pytest.mark.parametrize(("variable", "value", "message"), MISTAKES_IN_VARIABLES, ids=[f"{name}={value}" for name, value, _ in MISTAKES_IN_VARIABLES])
def test_a_mistake_in_a_variable_is_told_in_one_line(file, variable, value, message):
    with pytest.raises(UsageError, match=message) as caught:
        load(file(""), {variable: value})
    assert "\n" not in str(caught.value)


def test_a_mistake_between_two_places_names_both(file):
    path = file("[session]\ntimeout_ms = 5000\n")
    with pytest.raises(UsageError) as caught:
        load(path, {"KEYSTONE_DETECTION__OPEN_STALL_MS": "6000"})
    assert str(caught.value).startswith(f"{path}, KEYSTONE_DETECTION__OPEN_STALL_MS: session.timeout_ms = 5000 must exceed")


def test_an_unknown_flag_is_refused(file):
    with pytest.raises(UsageError, match=r"^session\.timeout is no setting: did you mean session\.timeout_ms\?$"):
        load(file(""), {}, {"session.timeout": 1})


def test_a_named_file_must_be_there(tmp_path):
    with pytest.raises(UsageError, match=r"no such configuration file: correct --config$"):
        load(tmp_path / "absent.toml", {})
    with pytest.raises(UsageError, match=r"no such configuration file: correct KEYSTONE_CONFIG$"):
        load(env={"KEYSTONE_CONFIG": str(tmp_path / "absent.toml")})


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\)"):
        load(tmp_path, {})


@pytest.mark.slow
def test_importing_the_configuration_loads_nothing_heavy():
    program = "import sys, keystone.config; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ, "KEYSTONE_TYPO": "1"})
    loaded = set(answer.stdout.split())
    assert "pydantic" in loaded
    assert not loaded & {"numpy", "numba", "ray", "kafka", "polars", "pyarrow", "rich"}
