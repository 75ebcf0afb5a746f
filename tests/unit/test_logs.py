"""Logging: what a line says, what it never says, and that nobody waits for it."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from keystone import logs, logs_writer
from keystone.config import LogsConfig
from keystone.errors import UsageError
from keystone.logs_lines import ERROR_CHARS_MAX, FIELD_CHARS_MAX, FIELDS_MAX, MESSAGE_CHARS_MAX, Line, as_json, as_text
from keystone.logs_writer import Output, Repeats, _pieces

ROOT = Path(__file__).parents[2]
log = logs.get("keystone.part")
DEADLINE_S = 60


class Written:
    """A configured log and its file."""

    def __init__(self, path: Path, **settings: object) -> None:
        self.path = path
        self.handle = logs.configure(LogsConfig(**settings), path=path, role="test")

    def lines(self) -> list[dict[str, object]]:
        assert self.handle.flush(DEADLINE_S)
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def last(self) -> dict[str, object]:
        return self.lines()[-1]


@pytest.fixture
def written(tmp_path):
    def start(name: str = "log", **settings: object) -> Written:
        for handler in tuple(logging.root.handlers):
            if type(handler).__module__.startswith("_pytest"):  # it renders what ours does not; each test gets a new one
                logging.root.removeHandler(handler)
        return Written(tmp_path / name, **settings)

    yield start
    if logs.Logging.current is not None:
        logs.Logging.current.close()


@pytest.fixture
def stuck(monkeypatch):
    """A pipe filled to the brim: its reading and writing end."""
    monkeypatch.setattr(logs, "CLOSE_WAIT_S", 0.2)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"." * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    with os.fdopen(writing, "w") as stream:
        yield reading, stream
    if logs.Logging.current is not None:
        logs.Logging.current.close()
    os.close(reading)


def until(is_so) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def program(text: str, **options: object) -> subprocess.Popen[bytes]:
    preface = "import logging, os, sys, time\nfrom pathlib import Path\nfrom keystone import logs\nfrom keystone.config import LogsConfig\n"
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", preface + text], cwd=ROOT, **options)


# --- formats --------------------------------------------------------------------------------------------------------------
def test_a_json_line_has_its_keys_in_order_and_the_fields_behind_them(written):
    log_file = written()
    log.info("topic made", topic="a b", partitions=np.int64(12), share=0.5, is_new=True, owner=None, path=Path("/x"))
    found = log_file.last()
    assert list(found) == ["ts", "level", "logger", "msg", "role", "pid", "topic", "partitions", "share", "is_new", "owner", "path"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("ts"))
    assert found.pop("pid") == os.getpid()
    assert list(found.values()) == ["info", "keystone.part", "topic made", "test", "a b", 12, 0.5, True, None, "/x"]


def test_time_is_utc_to_the_millisecond():
    assert json.loads(as_json(Line(1_790_000_000.0629, logging.INFO, "keystone", "m"), role="main", pid=1))["ts"] == "2026-09-21T14:13:20.062Z"


def test_a_field_of_a_taken_name_gets_an_underscore(written):
    log_file = written()
    log.info("m", level=3, msg="x")
    found = log_file.last()
    assert (found["level"], found["msg"], found["level_"], found["msg_"]) == ("info", "m", 3, "x")


def on_terminal(**settings: object) -> str:
    """What a terminal shows of a warning."""
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        handle = logs.configure(LogsConfig(**settings), stream=terminal, role="main")
        log.warning("disk slow", wait_ms=7, place="a b")
        handle.close()
    text = os.read(master, 10_000).decode()
    os.close(master)
    return text


def test_a_terminal_gets_lines_for_people_and_anything_else_json(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    coloured = re.fullmatch(r'\d\d:\d\d:\d\d\.\d{3} \x1b\[33mWARNING \x1b\[0m part: disk slow wait_ms=7 place="a b"\r\n', on_terminal())
    assert coloured
    assert json.loads(on_terminal(format="json"))["msg"] == "disk slow"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in on_terminal()


def test_a_stream_without_a_descriptor_will_do_and_stays_open():
    stream = io.StringIO()
    for form in ("json", "human"):
        handle = logs.configure(LogsConfig(format=form), stream=stream, role="session-0")
        log.info("here")
        handle.close()
    first, second = stream.getvalue().splitlines()
    assert json.loads(first)["role"] == "session-0"
    assert second.endswith("INFO     [session-0] part: here")


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # surrogates and controls too


@given(ANY_TEXT, st.dictionaries(ANY_TEXT, ANY_TEXT | st.integers() | st.floats() | st.lists(ANY_TEXT)), ANY_TEXT)
def test_any_record_is_one_line_that_controls_no_terminal(message, fields, error):
    line = Line(1.0, logging.ERROR, "keystone.part", message, fields, error)
    text = as_text(line, role="main", has_colours=False).decode()
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    encoded = as_json(line, role="main", pid=1)
    assert json.loads(encoded)["level"] == "error"
    assert len(encoded.decode().splitlines()) <= 1 or "\u2028" in encoded.decode() or "\u2029" in encoded.decode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", encoded.decode())


# --- levels ---------------------------------------------------------------------------------------------------------------
def test_our_level_is_not_that_of_libraries(written):
    log_file = written(level="debug", levels={"keystone.loud": "error", "kafka": "info", "foo": "debug"})
    for name in ("keystone.part", "keystone.loud.below", "kafka.conn", "ray.x", "asyncio", "urllib3.pool", "numba.core", "foo.bar"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            logging.getLogger(name).log(level, "%s", level)
    seen = Counter(line["logger"] for line in log_file.lines())
    assert seen == {
        "keystone.part": 5, "keystone.loud.below": 2, "kafka.conn": 4, "ray.x": 2, "asyncio": 3, "urllib3.pool": 3, "numba.core": 3, "foo.bar": 5,
    }  # fmt: skip


def test_kafka_is_silent_unless_asked_and_error_quiets_everyone(written):
    log_file = written(level="error")
    logging.getLogger("kafka.client").error("a traceback of 40 lines")
    logging.getLogger("asyncio").warning("slow")
    log.warning("slow")
    log.error("this alone")
    assert [line["msg"] for line in log_file.lines()] == ["this alone"]


def test_closing_leaves_logging_as_it_was(written):
    written().handle.close()

    def state():
        names = ("root", "keystone", "kafka", "ray", "foo")
        loggers = [logging.getLogger(name) for name in names]
        return [(one.level, one.propagate, list(one.handlers)) for one in loggers], logging.logThreads, logging.logProcesses

    ray = logging.getLogger("ray")
    own, another = logging.NullHandler(), logging.NullHandler()
    ray.addHandler(own)
    ray.addHandler(another)
    ray.propagate = False
    try:
        before = state()
        log_file = written(levels={"foo": "debug"})
        ray.error("comes through")
        assert log_file.last()["msg"] == "comes through"
        logs.adopt("foo", "ray")
        assert state() != before
        log_file.handle.close()
        log_file.handle.close()
        assert state() == before
    finally:
        ray.removeHandler(own)
        ray.removeHandler(another)
        ray.propagate = True


def test_a_library_that_is_imported_later_is_adopted(written):
    logs.adopt("late")  # nothing is configured: nothing happens
    late = logging.getLogger("late")
    stream = io.StringIO()
    late.addHandler(logging.StreamHandler(stream))
    late.propagate = False
    log_file = written()
    late.error("lost")
    logs.adopt("late")
    late.error("found")
    assert [line["msg"] for line in log_file.lines()] == ["found"]
    assert stream.getvalue() == "lost\n"
    log_file.handle.close()
    assert late.propagate is False
    late.handlers.clear()


def test_before_it_is_configured_records_take_the_usual_way(caplog):
    with caplog.at_level(logging.INFO, "keystone"):
        log.info("%d topics", 3, owner="x")
    (record,) = caplog.records
    assert record.getMessage() == "3 topics"
    assert record.keystone_fields == {"owner": "x"}


def test_a_second_call_replaces_the_first(written):
    first = written("first")
    handlers = len(logging.root.handlers)
    log.info("one")
    second = written("second")
    log.info("two")
    assert len(logging.root.handlers) == handlers
    assert [line["msg"] for line in second.lines()] == ["two"]
    assert [json.loads(line)["msg"] for line in first.path.read_bytes().splitlines()] == ["one"]
    first.handle.close()  # no longer its business
    log.info("three")
    assert second.last()["msg"] == "three"


def test_a_file_that_cannot_be_opened_is_told_in_one_line_and_changes_nothing(written, tmp_path):
    log_file = written()
    with pytest.raises(UsageError, match=r"cannot be written for the log: Is a directory; choose another file$") as caught:
        logs.configure(LogsConfig(), path=tmp_path)
    assert "\n" not in str(caught.value)
    log.info("still here")
    assert log_file.last()["msg"] == "still here"


# --- repeats --------------------------------------------------------------------------------------------------------------
def test_repeats_are_told_once_at_the_end_of_their_window():
    repeats = Repeats(5, 10_000)
    assert [repeats.admits("l", 30, "t", 0.001 * i) for i in range(1_234)] == [True] * 5 + [False] * 1_229
    assert repeats.ended(9.9) == []
    assert repeats.next_end_s() == 10.0
    ((logger, level, template, times, hidden, seconds),) = repeats.ended(10.0)
    assert (logger, level, template, times, hidden, seconds) == ("l", 30, "t", 1_234, 1_229, 10.0)
    assert repeats.ended(99) == []
    assert repeats.next_end_s() is None
    assert repeats.admits("l", 30, "t", 10.0)


RECORDS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([20, 30]), st.sampled_from("xyz"), st.floats(0, 3)), max_size=200)


@given(RECORDS, st.integers(1, 4), st.integers(1, 3_000), st.integers(1, 8), st.lists(st.integers(0, 200)))
def test_every_repeat_is_shown_or_told_and_few_are_shown(records, repeats_max, window_ms, templates_max, sweeps):
    repeats = Repeats(repeats_max, window_ms, templates_max)
    told, shown, now_s = [], Counter(), 0.0
    for at, (logger, level, template, later_s) in enumerate(records):
        now_s += later_s
        shown[logger, level, template] += repeats.admits(logger, level, template, now_s)
        assert len(repeats._windows) <= templates_max
        if at in sweeps or len(repeats._over) == templates_max:  # beyond, the oldest is forgotten
            told += repeats.ended(now_s)
    told += repeats.ended(now_s, all_of_them=True)
    hidden = Counter()
    for one in told:
        hidden[one.logger, one.level, one.template] += one.hidden
        assert one.times == one.hidden + repeats_max
    assert shown + hidden == Counter(record[:3] for record in records)


def test_what_nobody_asks_for_is_bounded():
    repeats = Repeats(1, 1, templates_max=10)
    for i in range(1_000):
        repeats.admits("l", 30, f"{i}", i)
        repeats.admits("l", 30, f"{i}", i)
        repeats.admits("l", 30, f"{i}" + "x" * 10_000, i)
    assert len(repeats._windows) + len(repeats._over) <= 20
    assert sum(len(key[2]) for key in repeats._windows) < 10_000


def test_a_repeated_message_is_shown_five_times_and_summed_up(written):
    log_file = written(repeat_window_ms=50)
    for i in range(1_234):
        log.warning("broker %s away", i, attempt=i)
        logging.getLogger("library").error("again %d", i)
    log.info("another")
    until(lambda: sum("repeated" in str(line["msg"]) for line in log_file.lines()) >= 2)
    messages = Counter(str(line["msg"]) for line in log_file.lines())
    assert {f"broker {i} away" for i in range(5)} <= set(messages)
    assert messages["another"] == 1
    log_file.handle.close()
    lines = [json.loads(line) for line in log_file.path.read_bytes().splitlines()]
    told = [line for line in lines if re.fullmatch(r"(broker %s away|again %d) \.\.\. repeated [\d,]+ times in [\d.e-]+ s", line["msg"])]
    shown = [line for line in lines if line not in told]
    assert len(shown) + sum(line["hidden"] for line in told) == 2 * 1_234 + 1
    assert {(line["level"], line["logger"]) for line in told} == {("warning", "keystone.part"), ("error", "library")}


def test_closing_tells_the_repeats_so_far(written):
    log_file = written(repeats_max=2)
    for _ in range(1_002):
        log.info("again")
    log_file.handle.close()
    *_, last = [json.loads(line) for line in log_file.path.read_bytes().splitlines()]
    assert last["msg"].startswith("again ... repeated 1,002 times in ")
    assert last["hidden"] == 1_000


# --- a slow output --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_stuck_reader_costs_records_not_time_and_the_loss_is_told(stuck):
    reading, stream = stuck
    handle = logs.configure(LogsConfig(queue_records_max=50, repeats_max=10_000), stream=stream)
    stream.close()  # its owner's right: the log has a descriptor of its own
    for i in range(3_000):
        log.info("record", i=i)
    assert handle.dropped >= 3_000 - 2 * 51
    assert not handle.flush(0.01)
    text = bytearray()

    def drain() -> list[dict[str, object]]:
        while select.select([reading], [], [], 0.05)[0]:
            text.extend(os.read(reading, 1 << 16))
        return [json.loads(line) for line in text.lstrip(b".").splitlines() if line.endswith(b"}")]

    until(lambda: any("dropped" in line for line in drain()))
    lines = drain()
    shown = [line["i"] for line in lines if line["msg"] == "record"]
    told = [line for line in lines if "dropped" in line]
    assert len(shown) + handle.dropped == 3_000
    assert sum(line["dropped"] for line in told) == handle.dropped == told[-1]["dropped_in_all"]
    assert shown == sorted(shown)
    assert told[0]["level"] == "warning"
    log.info("afterwards")
    until(lambda: drain()[-1]["msg"] == "afterwards")


@pytest.mark.slow
def test_closing_gives_up_on_a_stuck_reader(stuck):
    handle = logs.configure(LogsConfig(repeats_max=1_000), stream=stuck[1])
    for i in range(1_000):
        log.info("record", i=i, text="x" * 180)
    thread = handle._writer._thread
    handle.close()
    until(lambda: not thread.is_alive())
    assert handle.dropped == 1_000


@pytest.mark.slow
def test_a_program_ends_whose_standard_error_nobody_reads():
    started = program("logs.configure(LogsConfig(repeats_max=10**6))\nfor i in range(3000): logs.get('keystone.x').info('record', i=i)", stderr=subprocess.PIPE)
    try:
        assert started.wait(DEADLINE_S) == 0
    finally:
        started.kill()
        started.communicate()


@pytest.mark.slow
def test_a_program_that_ends_without_closing_has_written_everything(tmp_path):
    text = f"""
logs.configure(LogsConfig(repeats_max=10**6), path=Path({str(tmp_path / "log")!r}))
for i in range(3000):
    logs.get("keystone.x").info("record", i=i)
"""
    assert program(text).wait(DEADLINE_S) == 0
    assert [json.loads(line)["i"] for line in (tmp_path / "log").read_bytes().splitlines()] == list(range(3_000))


@pytest.mark.slow
def test_a_forked_child_logs_for_itself_and_repeats_nothing_of_its_parent(tmp_path):
    text = f"""
handle = logs.configure(LogsConfig(), path=Path({str(tmp_path / "log")!r}))
log = logs.get("keystone.x")
for _ in range(20):
    log.warning("parent")
if (pid := os.fork()) == 0:
    log.warning("child")
    assert handle.recent.drain() == (1, ["WARNING x: child"])
    handle.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
log.warning("parent again")
"""
    assert program(text).wait(DEADLINE_S) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    (told,) = (line["msg"] for line in lines if "repeated" in line["msg"])
    assert told.startswith("parent ... repeated 20 times")
    assert Counter(line["msg"] for line in lines) == {"parent": 5, told: 1, "child": 1, "parent again": 1}
    assert len({line["pid"] for line in lines}) == 2


def test_after_a_torn_line_the_next_begins_a_new_one(monkeypatch):
    monkeypatch.setattr(logs_writer, "POLL_S", 0.01)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 8_192)
    with os.fdopen(reading, "rb", buffering=0) as pipe, os.fdopen(writing, "w") as stream:
        output = Output(stream, None)
        patience = iter([False, False, True])  # asked before each piece, and while there is no room
        assert output.write([b"x" * 10_000 + b"\n"], lambda: next(patience)) == 1
        assert pipe.read(10_000) == b"x" * 8_192
        assert output.write([b"whole\n"], lambda: False) == 0
        assert output.write([b"whole\n"], lambda: False) == 0
        assert pipe.read(10_000) == b"\nwhole\nwhole\n"
        assert output.write([b"late\n", b"late\n"], lambda: True) == 2
        output.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_counted_and_harms_nobody():
    handle = logs.configure(LogsConfig(), path=Path("/dev/full"))
    log.info("one")
    log.info("two")
    assert handle.flush(DEADLINE_S)
    assert handle.dropped >= 2
    handle.close()


def test_many_threads_log_at_once(written):
    log_file = written(repeats_max=100_000, queue_records_max=100_000)
    threads = [threading.Thread(target=lambda: [log.info("record", i=i) for i in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(line["i"] for line in log_file.lines()) == dict.fromkeys(range(500), 8)
    assert log_file.handle.dropped == 0


@given(st.lists(st.integers(1, 3_000)))
def test_lines_are_written_whole_in_pieces_a_pipe_takes_at_once(sizes):
    lines = [b"%d" % (size % 10) * size for size in sizes]
    pieces = list(_pieces(lines))
    assert b"".join(piece for _, piece in pieces) == b"".join(lines)
    assert sum(count for count, _ in pieces) == len(lines)
    assert all(len(piece) <= select.PIPE_BUF for count, piece in pieces)
    assert [count for count, _ in _pieces([b"x" * 9_000, b"y"])] == [1, 1]


# --- what nobody reads ----------------------------------------------------------------------------------------------------
def test_ids_are_hashes_above_debug_and_equal_ones_look_alike(written):
    log_file = written(level="debug")
    log.info("seen", device_id="tv-1", user_id="bob", session_id=77, other=logs.device("tv-1"), both={"device_id": "tv-1", "ids": [logs.user("bob")]})
    log.info("seen by %s", logs.device("tv-1"))
    log.debug("seen by %s", logs.device("tv-1"), device_id="tv-1", other=logs.user("bob"))
    above, argument, debug = log_file.lines()
    assert re.fullmatch("~[0-9a-f]{10}", above["device_id"])
    assert above["device_id"] == above["other"] == above["both"]["device_id"] == str(logs.device("tv-1"))
    assert above["user_id"] == above["both"]["ids"][0] != above["session_id"]
    assert argument["msg"] == f"seen by {above['device_id']}"
    assert "tv-1" not in json.dumps([above, argument])
    assert (debug["msg"], debug["device_id"], debug["other"]) == ("seen by tv-1", "tv-1", "bob")


@pytest.mark.slow
def test_each_process_hashes_with_a_key_of_its_own():
    first, second = (program("print(logs.device('tv-1'))", stdout=subprocess.PIPE).communicate(timeout=DEADLINE_S)[0] for _ in range(2))
    assert first.startswith(b"~")
    assert first != second


CANARY = "c4n4ry"


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError(CANARY)

    __repr__ = __str__


class Batch:
    def __repr__(self) -> str:
        return CANARY


NEVER = [
    {"payload": CANARY}, {"raw": CANARY}, {"text": CANARY.encode()}, {"text": bytearray(CANARY.encode())}, {"text": memoryview(CANARY.encode())},
    {"text": logs.payload(CANARY)}, {"text": SecretStr(CANARY)}, {"sasl_password": CANARY}, {"Token": CANARY}, {"client_secret": [CANARY]},
    {"text": [b"x", CANARY.encode()]}, {"text": {"password": CANARY, "raw": CANARY}}, {"text": Batch()}, {"text": [Batch()]},
    {"text": np.frombuffer(CANARY.encode(), np.uint8)}, {"text": ValueError(CANARY.encode())}, {"text": Unprintable()},
    {"text": "x" * FIELD_CHARS_MAX + CANARY}, {"text": [[[[CANARY]]]]}, {"text": {1: {2: {3: {4: CANARY}}}}},
    dict.fromkeys((f"f{i}" for i in range(FIELDS_MAX)), 0) | {"g": CANARY},
]  # fmt: skip


@pytest.mark.parametrize("fields", NEVER, ids=range(len(NEVER)))
@pytest.mark.parametrize("form", ["json", "human"])
def test_secrets_payloads_and_unknown_objects_are_not_shown_at_any_level(written, fields, form):
    log_file = written(level="debug", format=form)
    log.debug("here", **fields)
    log.error("here", **fields)
    *_, value = fields.values()
    if not isinstance(value, (str, list, dict)):  # of these only the name of the field says that they are secret
        log.debug("here %s %r", value, value)
        log.error("here %s %r", value, value)
    assert log_file.handle.flush(DEADLINE_S)
    text = log_file.path.read_text()
    assert text.count("here") >= 2
    assert CANARY not in text
    assert CANARY.encode().hex() not in text
    assert CANARY not in str(log_file.handle.recent.drain())


def test_lengths_stand_for_payloads(written):
    log_file = written()
    log.info("refused", payload="abc", head=b"x" * 1_234, password="p", nothing_secret=None, key_secret=None)
    found = log_file.last()
    assert (found["payload"], found["head"], found["password"]) == ("<3 characters>", "<1,234 bytes>", "**********")
    assert found["nothing_secret"] is found["key_secret"] is None


def failing(text: str) -> None:
    try:
        {}[b"inner " + CANARY.encode()]
    except KeyError as error:
        raise ValueError(text) from error


@pytest.mark.parametrize("level", ["info", "debug"])
def test_an_error_is_its_type_and_the_beginning_of_its_message(written, level):
    log_file = written(level=level)
    try:
        failing("line one\nline two " + "x" * ERROR_CHARS_MAX + CANARY)
    except ValueError as error:
        log.exception("step failed")
        log.exception("step failed", exc_info=error)
        logging.getLogger("library").exception("step failed")
        log.warning("step failed %s", error, reason=error)
    *raised, told = log_file.lines()
    for line in raised:
        assert line["error"].startswith("ValueError: line one line two xxx")
        assert len(line["error"]) < ERROR_CHARS_MAX + 50
    assert CANARY not in log_file.path.read_text()
    assert told["reason"].startswith("ValueError: line one line two xxx")
    assert ["traceback" in line for line in raised] == ([True, True, False] if level == "debug" else [False] * 3)
    if level == "debug":
        trace = str(raised[0]["traceback"])
        assert "in failing" in trace
        assert trace.index("KeyError: <12 bytes>") < trace.index("which led to") < trace.index("ValueError: line one")


def test_a_traceback_for_people_is_indented(written):
    log_file = written(level="debug", format="human")
    try:
        failing("x")
    except ValueError:
        log.exception("step failed")
    assert log_file.handle.flush()
    first, *others = log_file.path.read_text().splitlines()
    assert first.endswith("part: step failed (ValueError: x)")
    assert others
    assert all(line.startswith("    ") for line in others)


def test_messages_are_cut(written):
    log_file = written()
    log.info("x" * 100_000)
    log.info("%s", "y" * 100_000)
    first, second = log_file.lines()
    assert max(len(first["msg"]), len(second["msg"])) < MESSAGE_CHARS_MAX + 50
    assert first["msg"].endswith("... (100,000 characters)")


def test_nothing_that_is_logged_raises(written):
    log_file = written()
    log.info("%d", "no number")
    log.info("%s %s", 1)  # noqa: PLE1206 - the point
    log.info("no place", 1)  # noqa: PLE1205 - the point
    log.info("%(name)s", {"other": 1})
    log.info("%s", Unprintable())
    log.info(["no", "text"])
    log.info(Unprintable())
    log.info("huge", n=10**40, text="\ud800", f=float("nan"))
    log.exception("without an exception")  # noqa: LOG004 - the point
    logging.getLogger("library").error("%s", Unprintable())
    logging.getLogger("library").error(Unprintable())
    logging.getLogger("library").error(ValueError("as a message"))
    logging.getLogger("keystone.plain").info("plain", extra={"rows": 3, "device_id": "tv-1"})
    logging.getLogger("library").error("plain", extra={"whatever": CANARY})
    lines = log_file.lines()
    messages = [line["msg"] for line in lines]
    assert messages[:3] == ["%d (its arguments do not fit)", "%s %s (its arguments do not fit)", "no place (its arguments do not fit)"]
    assert "ValueError: as a message" in messages
    assert next(line for line in lines if line["msg"] == "huge")["n"] == str(10**40)
    assert next(line for line in lines if line["logger"] == "keystone.plain")["rows"] == 3
    assert "tv-1" not in log_file.path.read_text()
    assert CANARY not in log_file.path.read_text()


# --- recent ---------------------------------------------------------------------------------------------------------------
def test_recent_keeps_the_last_warnings_and_counts_all(written):
    log_file = written(repeats_max=2)
    assert log_file.handle.recent.drain() == (0, [])
    log.info("no warning")
    for i in range(1_000):
        log.warning("warning " + str(i), device_id="tv-1")  # noqa: G003 - no two alike
    log.error("failed", text="x" * 10_000, exc_info=ValueError("a\nb"))
    count, lines = log_file.handle.recent.drain()
    assert count == 1_001
    assert len(lines) == logs.RECENT_LINES_MAX
    assert lines[0].startswith("WARNING part: warning 981 device_id=~")
    assert lines[-1].startswith('ERROR part: failed text="xxx')
    assert max(map(len, lines)) < logs.RECENT_CHARS_MAX + 50
    assert log_file.handle.recent.drain() == (0, [])


def test_recent_counts_repeats_when_they_are_summed_up(written):
    log_file = written(repeats_max=2, repeat_window_ms=20)
    for _ in range(100):
        log.warning("again")
    total = 0

    def is_told() -> bool:
        nonlocal total
        total += log_file.handle.recent.drain()[0]
        return total >= 100

    until(is_told)
    assert total == 100


def test_recent_is_a_handler_too():
    recent = logs.Recent(lines_max=2)
    logger = logging.getLogger("keystone.alone")
    logger.addHandler(recent)
    try:
        for text in ("a", "b", "c"):
            logger.warning(text)
    finally:
        logger.removeHandler(recent)
    assert recent.drain() == (3, ["WARNING alone: b", "WARNING alone: c"])


@pytest.mark.slow
def test_importing_it_loads_nothing_heavy():
    answer = program("print(*sorted({name.partition('.')[0] for name in sys.modules}))", stdout=subprocess.PIPE).communicate(timeout=DEADLINE_S)[0]
    assert not set(answer.decode().split()) & {"numpy", "numba", "ray", "kafka", "polars", "pyarrow", "rich", "click"}
