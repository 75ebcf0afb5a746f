"""No secret, no id and no payload reaches what people and log collectors read: output, log, errors, summaries.

Strings that exist nowhere else go in by every way that data and secrets come in. They must come out where they belong
(alerts, sessions, lake, dead letters), and nowhere else, in no encoding. A further command: run it as ``replay`` below
with its own ways in and results, and give what it told to ``assert_no_canary``.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import polars as pl
import pytest
from pydantic import BaseModel, SecretStr

from keystone.config import Config, load, setting_names, variable_of
from keystone.errors import UsageError

CANARIES = {
    "device_id": "Canary7Device4d1f0c",
    "user_id": "Canary7User93ab77",
    "session_id": "Canary7Session5e02c8",
    "title_id": "Canary7Title1c6be4",
    "extra": "Canary7Extra8f3d21",  # an unknown field, kept
    "payload": "Canary7Payload60aa9e",  # of lines that become dead letters
    "secret": "Canary7Secret2b7c55",
}
TS = 1_790_000_000_000
DEADLINE_S = 120

#: Runs the command line with the log as talkative as a person would have it, also from before the command configures its own.
PROGRAM = """
import sys
from pathlib import Path
from keystone import logs
from keystone.cli import main
from keystone.config import LogsConfig
log, canary = sys.argv[1:3]
logs.configure(LogsConfig(level="info", levels={"root": "info", "kafka": "info", "ray": "info"}), path=Path(log))
logs.get("keystone").warning("the log works", device_id=canary, payload=canary.encode())
main(sys.argv[3:])
"""


def encodings(canary: str) -> set[str]:
    """The canary as it would look in a text, in hex, or at any place in base64."""
    raw = canary.encode()
    shifted = (base64.b64encode(b"\0" * shift + raw).decode()[4:-4] for shift in range(3))
    return {canary, raw.hex(), *shifted}


def canaries_in(text: str | bytes) -> set[str]:
    """Which of the canaries a text holds, in whatever encoding."""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return {kind for kind, canary in CANARIES.items() if any(form.lower() in text.lower() for form in encodings(canary))}


def assert_no_canary(texts: Mapping[str, str | bytes]) -> None:
    """``texts``: what was told, by the name of the place where it was."""
    assert {name: sorted(found) for name, text in texts.items() if (found := canaries_in(text))} == {}


def secret_settings(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """The dotted name of every setting that pydantic keeps as a secret."""
    found = []
    for name, field in model.model_fields.items():
        kinds = {field.annotation, *get_args(field.annotation)}
        if SecretStr in kinds:
            found.append(prefix + name)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += secret_settings(field.annotation, f"{prefix}{name}.")
    return found


def secrets() -> dict[str, str]:
    return {variable_of(name): CANARIES["secret"] for name in secret_settings()}


def run(tmp_path: Path, *arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, dict[str, bytes]]:
    """Exit status, and everything the program told on the way: standard output and error, and its log."""
    log = tmp_path / "program.log"
    talkative = {"KEYSTONE_LOGS__LEVEL": "info", "KEYSTONE_LOGS__FORMAT": "json"}
    command = [sys.executable, "-c", PROGRAM, str(log), CANARIES["device_id"], *arguments]
    answer = subprocess.run(command, env={**os.environ, **talkative, **(env or {})}, capture_output=True, check=False, timeout=DEADLINE_S, cwd=tmp_path)
    told = {"standard output": answer.stdout, "standard error": answer.stderr, "log": log.read_bytes()}
    assert b"the log works" in told["log"]
    return answer.returncode, told


def good_lines() -> list[bytes]:
    """A session of the canaries that becomes an alert, a session record and rows of the lake."""
    fields = {name: CANARIES[name] for name in ("device_id", "session_id", "user_id", "title_id")} | {"note": CANARIES["extra"]}
    kinds = ["Start", "Heartbeat", "Buffer", "Buffer", "Buffer", "Stop"]
    return [json.dumps({"event": kind, "ts": TS + at * 1_000, "seq": at, "bitrate_kbps": 3_000, **fields}).encode() for at, kind in enumerate(kinds)]


def bad_lines() -> list[bytes]:
    """One for each reason of a dead letter, with the canary in it."""
    canary = CANARIES["payload"].encode()
    return [
        b'{"event":"Buffer","device_id":"' + canary + b'",',
        b'{"event":"Buffer","device_id":"' + canary + b'\xff"}',
        b'"' + canary + b'"',
        b'{"a":' * 70 + b'"' + canary + b'"' + b"}" * 70,
        b'{"event":"Buffer","ts":1,"device_id":"' + canary + b'"}',
        b'{"event":"Buffer","ts":"' + canary + b'","device_id":"d","session_id":"s"}',
        b'{"event":"' + canary + b"x" * (1 << 20) + b'"}',
    ]


@pytest.fixture
def events(tmp_path):
    path = tmp_path / "events.ndjson"
    path.write_bytes(b"\n".join([*good_lines(), *bad_lines()]) + b"\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("actors", [(), pytest.param(("--actors", "2"), marks=pytest.mark.ray)], ids=["alone", "actors"])
def test_a_replay_tells_nothing_of_what_it_reads(tmp_path, events, actors):
    out = tmp_path / "out"
    status, told = run(tmp_path, "replay", str(events), "--out", str(out), *actors, env=secrets())
    assert status == 0, told["standard error"]
    identities = {"device_id", "user_id", "session_id", "title_id"}
    assert canaries_in((out / "alerts.ndjson").read_bytes()) == identities  # the canaries sing where they may
    assert canaries_in(str(pl.read_parquet(out / "sessions.parquet").to_dicts())) >= {"device_id", "session_id"}
    assert canaries_in(str(pl.read_parquet(out / "lake", hive_partitioning=False).to_dicts())) == identities | {"extra"}
    letters = (out / "dead_letters.ndjson").read_bytes()
    assert len({json.loads(line)["reason"] for line in letters.splitlines()}) == 7
    assert len(letters.splitlines()) == len(bad_lines())
    assert canaries_in(letters) == {"payload"}
    assert_no_canary({**told, "summary": (out / "summary.json").read_bytes()})


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True], ids=["damaged", "cut off"])
def test_a_file_that_breaks_on_the_way_is_told_without_what_it_holds(tmp_path, cut):
    packed = gzip.compress(b"\n".join(good_lines() + bad_lines()[:-1]) * 500, 0)  # level 0: the canaries are in there as they are
    assert canaries_in(packed)
    path = tmp_path / "events.ndjson.gz"
    path.write_bytes(packed[: len(packed) // 2] if cut else packed[:-8] + bytes(8))
    status, told = run(tmp_path, "replay", str(path), "--out", str(tmp_path / "out"))
    assert status == 2
    assert b"events.ndjson.gz" in told["standard error"]
    assert_no_canary(told)


def test_there_are_secrets_to_keep():
    assert set(secret_settings()) <= set(setting_names())
    assert all(name.endswith(("password", "secret", "token", "key")) for name in secret_settings())
    assert secret_settings()


@pytest.mark.slow
@pytest.mark.parametrize("name", secret_settings())
def test_a_secret_in_the_wrong_place_is_refused_without_being_repeated(tmp_path, events, name):
    secret, variable = CANARIES["secret"], variable_of(name)
    table, leaf = name.split(".")
    file = tmp_path / "keystone.toml"
    file.write_text(f'[{table}]\n{leaf} = "{secret}"\n')
    status, told = run(tmp_path, "replay", str(events), "--out", str(tmp_path / "out"))
    assert status == 2
    assert len(told["standard error"].splitlines()) == 1
    flags = [{name: value} for value in (secret, [secret], {"x": secret}, 5)]
    tries = [(file, {}, {}), *((os.devnull, {}, flag) for flag in flags), *((os.devnull, {typo: secret}, {}) for typo in (variable + "X", variable[:-1]))]
    for at, (path, env, flag) in enumerate(tries):
        with pytest.raises(UsageError) as caught:
            load(path, env, flag)
        told[f"try {at}"] = str(caught.value)
    assert_no_canary(told)


def test_a_canary_would_be_heard():
    """The net has no holes: each canary, in each encoding."""
    for kind, canary in CANARIES.items():
        padded = [base64.b64encode(b"x" * shift + canary.encode() + b"yz").decode() for shift in range(7)]
        for text in (canary, f"a{canary}b".encode(), canary.upper(), canary.encode().hex(), *padded):
            assert canaries_in(text) == {kind}
            with pytest.raises(AssertionError, match=kind):
                assert_no_canary({"somewhere": text})
    assert_no_canary({"nothing": "Canary7"})


# --- the commands for a stream ----------------------------------------------------------------------------------------------
def run_on_topic(tmp_path: Path, servers: list[str], settings: Mapping[str, str]) -> tuple[int, dict[str, bytes]]:
    url = "kafka://" + ",".join(servers)
    paths = ["--lake", str(tmp_path / "lake"), "--report", str(tmp_path / "report.json")]
    status, told = run(tmp_path, "run", "--log", url, "--until-idle", "2", "--no-story", *paths, env=settings)
    if (tmp_path / "report.json").exists():
        told["report"] = (tmp_path / "report.json").read_bytes()
    return status, told


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_over_kafka_tells_neither_its_password_nor_what_devices_sent(tmp_path: Path, secure_kafka) -> None:
    """The login of a run that works; every kind of line goes through it."""
    from tests.rdkafka import Confluent

    prefix = f"canary-{os.getpid()}"
    names = {"actions_topic": f"{prefix}-actions", "dead_letters_topic": f"{prefix}-dead", "group": ""}
    settings = {f"KEYSTONE_KAFKA__{name.upper()}": value for name, value in names.items()}
    settings |= {
        "KEYSTONE_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "KEYSTONE_KAFKA__TLS_CA_FILE": str(secure_kafka.ca_path),
        "KEYSTONE_KAFKA__SASL_USERNAME": "alice",
    }
    password = {"KEYSTONE_KAFKA__SASL_PASSWORD": secure_kafka.security.users["alice"]}
    servers = [f"{server}/{prefix}" for server in secure_kafka.servers]
    made, _ = run(tmp_path, "topics", "create", "--log", f"kafka://{servers[0]}", "--partitions", "1", env=settings | password)
    assert made == 0
    events = [(CANARIES["device_id"].encode(), line) for line in (*good_lines(), *bad_lines())]
    Confluent(secure_kafka.login("alice")).produce(secure_kafka.servers, prefix, events, partition=0)
    status, told = run_on_topic(tmp_path, servers, settings | password)
    assert status == 0, told
    assert json.loads(told["report"])["ledger"]["dead_lettered"] == len(bad_lines())
    assert json.loads(told["report"])["alerts"] == 1
    assert_no_canary(told)
    assert not any(password["KEYSTONE_KAFKA__SASL_PASSWORD"].encode() in text for text in told.values())
    status, told = run_on_topic(tmp_path, servers, settings | secrets())  # a password that is wrong
    assert status == 2
    assert_no_canary(told)


@pytest.mark.ray
@pytest.mark.slow
def test_a_story_shows_devices_on_the_terminal_and_nowhere_else(tmp_path: Path) -> None:
    url = f"embedded:{tmp_path / 'log'}"
    from keystone.config import KafkaConfig
    from keystone.log.opening import open_log

    log = open_log(url, KafkaConfig(), is_made=True)
    writer = log.writer(0)
    for line in (*good_lines(), *bad_lines()):
        writer.append(line)
    log.close()
    status, told = run(tmp_path, "run", "--log", url, "--until-idle", "2", "--actions", "console", "--lake", str(tmp_path / "lake"))
    assert status == 0, told
    assert CANARIES["device_id"].encode() in told.pop("standard output")
    assert_no_canary(told)
