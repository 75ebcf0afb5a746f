"""``keystone dead-letters replay``: what is mended goes to the partition of its device, once, whatever happens between."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from keystone.actors.outputs import Letters
from keystone.config import Config
from keystone.decode import Decoder
from keystone.errors import LogFull
from keystone.log.embedded import EmbeddedLog
from keystone.log.partition import EmbeddedWriter
from keystone.partition import partition_of
from keystone.pipeline import PartitionPipeline
from tests.letters import letter, told, write

TS = 1_790_000_000_000
PARTITIONS = 3
MEND = '.ts = tonumber(.timestamp) | del(.timestamp) | .event = "Heartbeat"'


def broken(n: int) -> bytes:
    """A bad app version: another name for the time, in a string."""
    return b'{"event":7,"timestamp":"%d","device_id":"d-%d","session_id":"s"}' % (TS + n, n)


class Scene:
    """A log, and letters of it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.letters, self._capsys = folder, folder / "letters", capsys
        self.url = f"embedded:{folder / 'log'}"
        EmbeddedLog.create(folder / "log", partitions=PARTITIONS, segment_bytes=1 << 16, retention_bytes=1 << 18, append_wait_max_ms=10).close()

    def replay(self, *words: str) -> tuple[int, str, str]:
        return told(self._capsys, "dead-letters", "replay", "--from", str(self.letters), "--log", self.url, *words)

    def read(self) -> list[list[bytes]]:
        """All values, by partition."""
        found: list[list[bytes]] = []
        with closing(EmbeddedLog.open(self.folder / "log")) as log:
            for partition in range(PARTITIONS):
                records = log.reader(partition).poll(bytes_max=1 << 20, wait_ms=0)
                found.append([records.text[start:end].tobytes() for start, end in zip(records.starts, records.ends, strict=True)])
        return found

    def count(self) -> int:
        return sum(map(len, self.read()))

    def journal(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.letters / "replays.ndjson").read_text().splitlines()]


@pytest.fixture
def scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Scene:
    made = Scene(tmp_path, capsys)
    write(made.letters, [letter(n, broken(n), "missing_field", line=1) for n in range(20)])
    return made


def test_each_goes_to_the_partition_of_its_device_once(scene: Scene) -> None:
    status, out, err = scene.replay("--expr", MEND)
    assert (status, err) == (0, "")
    assert out.startswith("20 sent (partition 0: ")
    values = scene.read()
    for partition, some in enumerate(values):
        for value in some:
            event = json.loads(value)
            assert partition_of(event["device_id"], PARTITIONS) == partition
            assert event == {"event": "Heartbeat", "device_id": event["device_id"], "session_id": "s", "ts": TS + int(event["device_id"][2:])}
    assert scene.count() == 20
    rows = scene.journal()
    assert [row["state"] for row in rows] == ["intent"] * 20 + ["sent"] * 20
    last = rows[-1]
    assert (last["partition"], last["offset"], last["line"], last["reason"]) == (0, 19, 1, "missing_field")
    assert json.loads(values[int(str(last["to_partition"]))][int(str(last["to_offset"]))])["device_id"] == "d-19"

    status, out, _ = scene.replay("--expr", MEND)
    assert (status, out.splitlines()) == (0, ["0 sent", "20 sent before: passed over (--again sends them once more)"])
    assert scene.count() == 20
    assert scene.replay("--expr", MEND, "--again", "--limit", "3")[0] == 0
    assert scene.count() == 23


def test_a_limit_goes_on_where_the_last_one_ended(scene: Scene) -> None:
    for _ in range(3):
        assert scene.replay("--expr", MEND, "--limit", "8")[0] == 0
    assert scene.count() == 20


def test_a_dry_run_shows_and_sends_nothing(scene: Scene) -> None:
    write(scene.letters, [letter(30, b'{"\x1b[2J":1}', "missing_field")], epoch=2)
    status, out, err = scene.replay("--expr", MEND, "--dry-run", "--limit", "2")
    assert status == 0, err
    assert out.splitlines() == [
        "0:0:1  missing_field", f"  before  {broken(0).decode()}",
        f'  after   {{"event":"Heartbeat","device_id":"d-0","session_id":"s","ts":{TS}}}',
        "0:1:1  missing_field", f"  before  {broken(1).decode()}",
        f'  after   {{"event":"Heartbeat","device_id":"d-1","session_id":"s","ts":{TS + 1}}}',
        out.splitlines()[-1],
    ]  # fmt: skip
    assert out.splitlines()[-1].startswith("2 would be sent (partition ")
    assert "\x1b" not in scene.replay("--dry-run")[2]
    assert scene.count() == 0
    assert not (scene.letters / "replays.ndjson").exists()


def test_what_cannot_be_used_is_counted_and_shown_not_sent(scene: Scene) -> None:
    write(
        scene.letters,
        [
            letter(0, b"not json", "invalid_json", partition=1),
            letter(1, b"[" * 65_536, "too_large", partition=1, length=2_000_000),
            letter(2, b'{"timestamp":"x"}', "missing_field", partition=1),
            letter(3, b'{"timestamp":"1"}', "missing_field", partition=1),
            letter(4, b"", "not_kept", partition=1),
        ],
    )
    status, out, err = scene.replay("--expr", MEND)
    assert status == 1
    assert out.splitlines()[0].startswith("20 sent")
    assert out.splitlines()[1] == "4 not sent: cannot be mended 2, cut at 64 KiB 1, missing_field 1"
    assert err.splitlines() == [
        "1:0:0  not sent, cannot be mended: it is no JSON: only --python can mend it",
        "1:1:0  not sent, cut at 64 KiB: 2,000,000 bytes, and 65,536 are kept",
        "1:2:0  not sent, cannot be mended: tonumber(): the field is no number, nor a string that is one",
        '1:3:0  not sent, missing_field: device_id, session_id: absent or null: {"ts":1,"event":"Heartbeat"}',
        "more were counted and not kept (dead_letters.bytes_max)",
    ]


def test_as_they_are_only_what_is_accepted_by_now_is_sent(scene: Scene) -> None:
    good = b'{"event":"Start","ts":%d,"device_id":"d","session_id":"s"}' % TS
    write(scene.letters, [letter(0, good, "bad_type", partition=2)])
    status, out, err = scene.replay()
    assert (status, scene.count()) == (1, 1)
    assert "1 sent" in out
    assert "20 not sent: missing_field 20" in out
    assert err.count("not sent") == 5


def test_python_mends_what_no_expression_can(scene: Scene, tmp_path: Path) -> None:
    write(scene.letters, [letter(0, b"d-900;1790000000000", "invalid_json", partition=1), letter(1, b"boom", "invalid_json", partition=1)])
    file = tmp_path / "mend.py"
    file.write_text(
        "import json\n"
        "def mend(line, letter):\n"
        "    if letter['reason'] != 'invalid_json':\n"
        "        return None\n"
        "    device, ts = line.decode().split(';')\n"
        "    return json.dumps({'event': 'Start', 'ts': int(ts), 'device_id': device, 'session_id': 's'}).encode()\n"
    )
    status, out, err = scene.replay("--python", str(file))
    assert (status, scene.count()) == (1, 1)
    assert out.splitlines()[1:] == ["1 not sent: cannot be mended 1", "20 left out by mend()"]
    assert "mend() fails: ValueError: not enough values" in err
    file.write_text("def mend(line, letter):\n    return b'{}\\n{}' if letter['offset'] else 'text'\n")
    assert "it gave str, not bytes or None" in scene.replay("--python", str(file), "--partition", "0")[2]


def test_several_events_are_not_one(scene: Scene, tmp_path: Path) -> None:
    good = b'{"event":"Start","ts":%d,"device_id":"d","session_id":"s"}' % TS
    (tmp_path / "mend.py").write_text(f"def mend(line, letter):\n    return {good + b'%' + good!r}.replace(b'%', b'\\n')\n")
    status, _, err = scene.replay("--python", str(tmp_path / "mend.py"), "--limit", "1")
    assert (status, err) == (1, "0:0:1  not sent, not one event: 2 lines\n")


def test_a_crash_between_sending_and_noting_doubles_nothing_unasked(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from keystone.run.letters_journal import Journal

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "end", lambda *_: None)
        scene.replay("--expr", MEND, "--limit", "5")
    with (scene.letters / "replays.ndjson").open("ab") as file:
        file.write(b'{"state":"sen')  # torn
    status, out, _ = scene.replay("--expr", MEND)
    assert status == 1
    assert out.splitlines()[0].startswith("15 sent")
    assert out.splitlines()[1:] == ["5 begun and of unknown outcome: look whether they are in the log; if not, --again sends them"]
    assert scene.count() == 20
    assert scene.replay("--expr", MEND, "--again")[0] == 0
    assert scene.count() == 40


def test_a_full_log_is_told_and_the_rest_goes_later(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    append, room = EmbeddedWriter.append, [7]

    def until_full(self: EmbeddedWriter, value: bytes, *, events: int = 1) -> object:
        room[0] -= 1
        if room[0] < 0:
            raise LogFull("the log is full")
        return append(self, value, events=events)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedWriter, "append", until_full)
        status, out, err = scene.replay("--expr", MEND)
    assert (status, err) == (1, "keystone: the log is full\n")
    assert out.splitlines()[0].startswith("7 sent")
    assert out.splitlines()[1] == "13 not sent: not taken by the log 13"
    assert scene.replay("--expr", MEND)[0] == 0
    assert scene.count() == 20


def test_a_live_writer_is_left_alone(scene: Scene) -> None:
    with closing(EmbeddedLog.open(scene.folder / "log")) as log:
        log.writer(1)
        status, _, err = scene.replay("--expr", MEND)
    assert (status, err.count("\n")) == (2, 1)
    assert "writes to partition 1, and an embedded log has one writer: stop it, replay, start it again" in err
    assert not (scene.letters / "replays.ndjson").exists()


def test_another_log_has_a_history_of_its_own(scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene.replay("--expr", MEND)
    EmbeddedLog.create(tmp_path / "other", partitions=1, segment_bytes=1 << 16, retention_bytes=1 << 18).close()
    words = ("--from", str(scene.letters), "--log", f"embedded:{tmp_path / 'other'}", "--expr", MEND)
    assert told(capsys, "dead-letters", "replay", *words)[1].startswith("20 sent")


def test_letters_of_several_runs_are_not_put_on_one_log_unasked(scene: Scene) -> None:
    """They may be of several logs: at the same places, and none of them must stand for another's."""
    write(scene.letters, [letter(n, broken(100 + n), "missing_field", line=1) for n in range(5)], run="other")
    for words in ((), ("--dry-run",)):
        status, out, err = scene.replay("--expr", MEND, *words)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "has letters of several runs (0f3a91c2, other): choose one by --run, or --run all if all are of this log" in err
    assert scene.count() == 0
    assert not (scene.letters / "replays.ndjson").exists()
    assert scene.replay("--expr", MEND, "--run", "other")[1].startswith("5 sent")
    assert {json.loads(value)["device_id"] for some in scene.read() for value in some} == {f"d-{n}" for n in range(100, 105)}
    status, out, _ = scene.replay("--expr", MEND, "--run", "all")
    assert (status, out.partition(" (")[0]) == (0, "15 sent")
    assert "5 sent before" in out, "of one log each place is one line"


def test_two_replays_at_once_are_one(scene: Scene) -> None:
    from keystone.run.letters_journal import Journal

    with closing(Journal(scene.letters / "replays.ndjson", "x")):
        status, _, err = scene.replay("--expr", MEND)
    assert (status, err.count("\n")) == (2, 1)
    assert "another replay is writing it" in err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--expr", "ts = 1"), "--expr, character 1: ts stands where"),
        (("--expr", ".a = 1", "--python", "x"), "exclude each other"),
        (("--python", "{tmp}/none.py"), "cannot be read"),
        (("--python", "{tmp}/syntax.py"), "syntax.py, line 1: "),
        (("--python", "{tmp}/empty.py"), "has no function mend(line"),
        (("--python", "{tmp}/fails.py"), "fails when it is loaded: ZeroDivisionError"),
        (("--journal", "{tmp}/empty.py/x"), "name another file by --journal"),
        (("--journal", "{tmp}/syntax.py"), "is no line of a journal of replays"),
        (("--journal", "{tmp}/log"), "cannot be written"),
        (("--log", "embedded:{tmp}/nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_one_line(scene: Scene, tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    for name, text in {"syntax": "def (\n", "empty": "", "fails": "1 / 0\n"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    status, _, err = scene.replay(*(word.format(tmp=tmp_path) for word in words))
    assert (status, err.count("\n")) == (2, 1), err
    assert line in err
    assert scene.count() == 0


def test_from_a_pipelines_letters_to_a_pipeline_that_accepts_them(scene: Scene, tmp_path: Path) -> None:
    """The whole way: what one run could not use, the next one takes, and both ledgers balance."""
    letters = Letters(tmp_path / "run-letters", "0f3a91c2-")
    decoder = Decoder()
    with closing(EmbeddedLog.open(tmp_path / "log")) as log:
        writers = [log.writer(p) for p in range(PARTITIONS)]
        for n in range(30):
            good = b'{"event":"Start","ts":%d,"device_id":"d-%d","session_id":"s"}' % (TS, n)
            writers[partition_of(f"d-{n}", PARTITIONS)].append(good + b"\n" + broken(n), events=2)
        for partition in range(PARTITIONS):
            result = PartitionPipeline(partition, decoder, Config()).step(log.reader(partition).poll(bytes_max=1 << 20, wait_ms=0))
            assert result.ledger.received == 2 * result.ledger.dead_lettered == 2 * result.ledger.accepted
            letters.own(partition, 1)
            letters.write(partition, result.dead_letters)
    letters.close()
    scene.letters = tmp_path / "run-letters"
    assert scene.replay("--expr", MEND)[1].startswith("30 sent")
    received = accepted = dead = 0
    with closing(EmbeddedLog.open(tmp_path / "log")) as log:
        for partition in range(PARTITIONS):
            result = PartitionPipeline(partition, decoder, Config()).step(log.reader(partition).poll(bytes_max=1 << 20, wait_ms=0))
            received, accepted, dead = received + result.ledger.received, accepted + result.ledger.accepted, dead + result.ledger.dead_lettered
    assert (received, accepted, dead) == (90, 60, 30)
