"""Damaged, cut, half-written and contested checkpoints: restored exactly, or refused; each epoch won by one."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from keystone import checkpoint_format as framing
from keystone.checkpoint import Checkpoint, Checkpoints, key_of
from keystone.config import Config
from keystone.errors import CheckpointDamaged, KeystoneError, UsageError
from keystone.store import UNFINISHED, open_store
from tests.batches import event
from tests.checkpoints import Owner, checkpoint_of, config_of, records_of, segment

ROOT = Path(__file__).parents[2]
NOW = 1_790_000_000_000
RULES = {"timeout_ms": 30_000, "grace_ms": 5_000}
numbers = itertools.count()


def small_owner() -> Owner:
    """Three sessions: in a stall, stopped, plain."""
    owner = Owner(config_of(RULES, {}))
    events = [
        event(kind, NOW + i, session_id=str(i % 3), cdn="c", title_id=f"t{i}", seq=i) for i, kind in enumerate(("Buffer", "Stop", "Start", "Buffer", "Error"))
    ]
    owner.step(records_of([(item, NOW + i) for i, item in enumerate(events)], 0))
    return owner


@pytest.fixture(scope="module")
def content() -> bytes:
    checkpoint = checkpoint_of(small_owner().pipeline, next_offset=5, segments=(segment(),), committed=1, counters={"gaps": {"retention": 1}}, log_id="log")
    # Empty free lists are 8 KB of the same byte, damaged 8 KB the same way: a few of them tell as much.
    checkpoint.arrays["free"] = checkpoint.arrays["free"][:8]
    return b"".join(framing.encode(checkpoint.to_json(), checkpoint.arrays, schema=1))


def is_refused(content: bytes) -> bool:
    try:
        framing.decode(memoryview(content))
    except CheckpointDamaged:
        return True
    return False


def test_a_cut_anywhere_is_found(content: bytes) -> None:
    assert not is_refused(content)
    assert all(is_refused(content[:size]) for size in range(len(content)))
    assert is_refused(content + b"\0")
    assert is_refused(content + content)


@pytest.mark.slow
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF, 0x20, 0x10])
def test_a_flipped_byte_anywhere_is_found(content: bytes, flip: int) -> None:
    damaged = bytearray(content)
    for at in range(len(content)):
        damaged[at] ^= flip
        assert is_refused(bytes(damaged)), f"byte {at} of {len(content)}"
        damaged[at] ^= flip


def test_a_flipped_byte_in_the_head_is_found_by_who_reads_only_that(content: bytes) -> None:
    head = framing.decode_head(lambda start, size: memoryview(content)[start : start + size])
    assert head.size == len(content)
    damaged = bytearray(content)
    for at in range(head.arrays_at):
        damaged[at] ^= 0x04
        with pytest.raises(CheckpointDamaged):
            framing.decode_head(lambda start, size: memoryview(damaged)[start : start + size])
        damaged[at] ^= 0x04
    for size in range(len(content)):
        with pytest.raises(CheckpointDamaged):
            framing.decode_head(lambda start, wanted, size=size: memoryview(content)[:size][start : start + wanted])


def test_zeros_and_shuffled_blocks_are_found(content: bytes) -> None:
    """What a disk does: a block that was never written, or another file's."""
    random = np.random.default_rng(3)
    for at in range(0, len(content), 512):
        block = content[at : at + 512]
        for other in (bytes(len(block)), random.bytes(len(block)), content[: len(block)]):
            if other != block:
                assert is_refused(content[:at] + other + content[at + len(block) :])
    assert is_refused(b"")
    assert is_refused(bytes(len(content)))


@pytest.mark.slow
def test_a_damaged_newest_gives_the_one_before_or_nothing_wrong() -> None:
    """Through the store and into a table: every 7th byte flipped, every 29th cut."""
    store = open_store(f"memory://damage-{next(numbers)}")
    checkpoints = Checkpoints(store)
    epoch = checkpoints.claim(key_of(0), "me")
    owner = small_owner()
    before = checkpoint_of(owner.pipeline, epoch=epoch, sequence=0, next_offset=5)
    owner.step(records_of([(event("Buffer", NOW + 9, session_id="9", cdn="other"), NOW + 9)], 5))
    newest = checkpoint_of(owner.pipeline, epoch=epoch, sequence=1, next_offset=6)
    checkpoints.save(before)
    checkpoints.save(newest)
    whole = bytes(store.get(newest.name))
    cuts = [whole[:size] for size in range(0, len(whole), 29)]
    flips = [whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :] for at in range(0, len(whole), 7)]
    for damaged in (*cuts, *flips):
        store.put(newest.name, [damaged])
        found = Checkpoints(store).latest(0)
        assert found is not None
        assert found.next_offset == 5
    assert outcome_of(found) == outcome_of(before)
    store.put(newest.name, [whole])
    found = Checkpoints(store).latest(0)
    assert found is not None
    assert outcome_of(found) == outcome_of(newest) != outcome_of(before)


def outcome_of(checkpoint: Checkpoint) -> object:
    """What comes of it when time passes."""
    owner = Owner(config_of(RULES, {}), strangers=2)
    owner.pipeline.restore(checkpoint.arrays)
    owner.step(records_of([], checkpoint.next_offset), now_ms=NOW + 10**6)
    return owner.outcome()


def test_another_seed_is_refused() -> None:
    """Its sessions would be found by nobody, and all begin again."""
    arrays = small_owner().pipeline.snapshot()
    with pytest.raises(UsageError, match="made with another seed"):
        Owner(Config(), seed=8).pipeline.restore(arrays)


# --- processes --------------------------------------------------------------------------------------------------------
SAVES = """
import sys
import numpy as np
from keystone.checkpoint import Checkpoint, Checkpoints, key_of
from keystone.metrics import Ledger
from keystone.store import open_store
checkpoints = Checkpoints(open_store(sys.argv[1]))
epoch = checkpoints.claim(key_of(0), "to be killed")
for sequence in range(1_000_000):
    arrays = {"rows": np.full(4 << 20, sequence)}
    checkpoints.save(Checkpoint(0, epoch, sequence, sequence, 0, Ledger(), arrays=arrays))
    print(sequence, flush=True)
"""


@contextlib.contextmanager
def running(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def unfinished(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{UNFINISHED}*"))


@pytest.mark.slow
def test_a_writer_killed_in_mid_write_leaves_the_one_before(tmp_path: Path) -> None:
    """Until two were killed with a file half written; then its successor's first checkpoint removes what they left."""
    rests = 0
    for kill in range(1, 40):
        with running(SAVES, str(tmp_path)) as process:
            assert process.stdout is not None
            saved = int(process.stdout.readline())
            deadline = time.monotonic() + 20
            while not any(path.stat().st_size > 1 << 20 for path in unfinished(tmp_path) if path.exists()) and time.monotonic() < deadline:
                time.sleep(0.0005)
            process.send_signal(signal.SIGKILL)
            saved = max([saved, *(int(line) for line in process.stdout.read().splitlines() if line.isdigit())])
        found = Checkpoints(open_store(str(tmp_path))).latest(0)
        assert found is not None
        assert (found.epoch, found.sequence) >= (kill, saved)
        assert np.all(found.arrays["rows"] == found.sequence)
        rests += bool(unfinished(tmp_path))
        if rests >= 2:
            break
    assert unfinished(tmp_path)
    checkpoints = Checkpoints(open_store(str(tmp_path)))
    epoch = checkpoints.claim(key_of(0), "successor")
    checkpoints.save(checkpoint_of(small_owner().pipeline, epoch=epoch, next_offset=5))
    assert unfinished(tmp_path / "checkpoints") == []


CLAIMS = """
import sys
from keystone.checkpoint import Checkpoints
from keystone.store import open_store
checkpoints = Checkpoints(open_store(sys.argv[1], fsync=False))
print("ready", flush=True)
sys.stdin.readline()
print(*(checkpoints.claim("p00003", sys.argv[2]) for _ in range(25)))
"""


@pytest.mark.slow
def test_of_eight_processes_that_claim_at_once_one_wins_each_epoch(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen([sys.executable, "-c", CLAIMS, str(tmp_path), f"racer {k}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ)
        for k in range(8)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == b"ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write(b"\n")
            racer.stdin.flush()
        won = [[int(epoch) for epoch in racer.communicate(timeout=60)[0].split()] for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert sorted(itertools.chain(*won)) == list(range(1, 201))
    assert all(epochs == sorted(epochs) for epochs in won)
    assert Checkpoints(open_store(str(tmp_path))).current("p00003") == 200


RESTORES = """
import sys
from keystone.checkpoint import Checkpoints
from keystone.store import open_store
from tests.checkpoints import Owner, config_of, records_of
checkpoints = Checkpoints(open_store(sys.argv[1]))
found = checkpoints.latest(0)
owner = Owner(config_of({"timeout_ms": 30_000, "grace_ms": 5_000}, {}), strangers=5, seed=checkpoints.seed())
owner.pipeline.restore(found.arrays)
owner.step(records_of([], found.next_offset), now_ms=1_790_000_000_000 + 10**6)
print(owner.outcome())
"""


@pytest.mark.slow
def test_another_process_goes_on(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_store(str(tmp_path)))
    owner = Owner(config_of(RULES, {}), seed=checkpoints.seed())
    owner.step(records_of([(event("Buffer", NOW + i, session_id=str(i % 3), cdn="c", title_id=f"t{i}", seq=i), NOW + i) for i in range(7)], 0))
    epoch = checkpoints.claim(key_of(0), "first")
    checkpoints.save(checkpoint_of(owner.pipeline, epoch=epoch, next_offset=7))
    owner.results.clear()
    owner.step(records_of([], 7), now_ms=NOW + 10**6)
    answer = subprocess.run([sys.executable, "-c", RESTORES, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == repr(owner.outcome())
    assert len(owner.outcome()[1]) == 3


def test_whatever_is_wrong_is_an_error_of_ours(content: bytes) -> None:
    """A head with a right checksum and wrong content: made by hand, or by a defect."""
    for header in (b"", b"{}", b"[]", b'{"fields":{},"arrays":[]}', b'{"fields":{},"arrays":[{"name":"x"}]}', b"\xff", b'{"fields":[],"arrays":[]}'):
        padded = header + bytes(-len(header) % framing.ALIGNMENT)
        checked = framing._CHECKED.pack(framing.MAGIC, 1, 1, len(header), 64 + len(padded) + 64, framing.crc32c(padded))
        made = checked + framing._CRC.pack(framing.crc32c(checked)) + padded + bytes(64)
        with pytest.raises(KeystoneError):
            framing.decode(memoryview(made))
