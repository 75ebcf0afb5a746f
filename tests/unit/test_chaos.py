"""``--chaos``: what is read, what is drawn, who is struck, and what says that it is over."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from keystone.bench.__main__ import bench_command
from keystone.bench.chaos import CYCLE, EVERY_MIN_S, FROZEN_S, TARGETS, Chaos, Fault, Process, choose, drawn, parse
from keystone.bench.chaos_report import Struck
from keystone.bench.children import Child
from keystone.bench.signs import sign_of
from keystone.bench.striking import Striker, actors_of
from keystone.errors import UsageError

ALL = "kill:session-actor@10s,freeze:session-actor:5s@20s,kill:committer@25s,kill:supervisor@30s,kill:fleet@35s,kill:driver@40s"


# --- reading ----------------------------------------------------------------------------------------------------------
def test_a_list_of_faults_is_read() -> None:
    chaos = parse(ALL, seconds=60)
    assert [str(fault) for fault in chaos.faults] == ALL.split(",")
    assert not chaos.waits
    assert chaos.faults[1] == Fault("freeze", "session-actor", 20.0, 5.0, draw=1)


@given(st.lists(st.tuples(st.sampled_from(["kill", "freeze"]), st.sampled_from(TARGETS), st.integers(0, 59_999), st.integers(1, 6_000)), min_size=1))
def test_faults_come_out_in_order_of_time_as_they_went_in(rows: list[tuple[str, str, int, int]]) -> None:
    texts = [f"{action}:{target}{f':{for_ms}ms' if action == 'freeze' else ''}@{at_ms / 1_000}s" for action, target, at_ms, for_ms in rows]
    faults = parse(", ".join(texts), seconds=60).faults
    assert [fault.at_s for fault in faults] == sorted(at_ms / 1_000 for _, _, at_ms, _ in rows)
    found = Counter((f.action, f.target, round(f.at_s * 1_000), round(f.for_s * 1_000)) for f in faults)
    assert found == Counter((action, target, at_ms, for_ms if action == "freeze" else 0) for action, target, at_ms, for_ms in rows)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("", "is no fault"),
        ("kill:session-actor", "is no fault"),
        ("maim:driver@5s", "is no fault"),
        ("kill:broker@5s", "there is no 'broker'"),
        ("kill:driver:5s@5s", "a kill has none"),
        ("freeze:driver@5s", "a freeze has a length"),
        ("freeze:driver:0s@5s", "up to 60 s"),
        ("freeze:fleet:7s@5s", "up to 6 s"),
        ("kill:driver@soon", "'soon' is no time"),
        ("kill:driver@60s", "after the end"),
        ("random:7", "random:SEED:EVERY"),
        ("random:x:8", "random:SEED:EVERY"),
        ("random:7:x", "is no time"),
        ("random:7:4", "at least every 5 s"),
        ("random:7:80s", "no fault would strike"),
    ],
)
def test_what_cannot_be_is_refused_and_says_why(spec: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        parse(spec, seconds=60)


@pytest.mark.parametrize("args", [["--chaos", "kill:moon@1s"], ["--chaos", "random:7:8", "--search"]])
def test_the_command_refuses_before_anything_is_started(args: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(bench_command, ["--eps", "1000", "--out", str(tmp_path / "out"), *args])
    assert result.exit_code == 2
    assert "--chaos" in result.output
    assert not (tmp_path / "out").exists()


# --- drawing ----------------------------------------------------------------------------------------------------------
@given(st.integers(0, 2**31), st.floats(EVERY_MIN_S, 60), st.integers(8, 40))
def test_drawn_faults_follow_the_seed_and_hold_all_kinds(seed: int, every_s: float, faults: int) -> None:
    seconds = every_s * (faults + 1)
    found = drawn(seed, every_s, seconds)
    assert faults <= len(found) <= faults + 1
    assert found == drawn(seed, every_s, seconds)
    assert found == drawn(seed, every_s, seconds * 2)[: len(found)]
    assert {(fault.action, fault.target) for fault in found[: len(CYCLE)]} == set(CYCLE)
    for number, fault in enumerate(found, 1):
        assert number * every_s - 0.001 <= fault.at_s <= (number + 0.5) * every_s + 0.001
        assert fault.for_s == 0 if fault.action == "kill" else FROZEN_S[0] <= fault.for_s <= FROZEN_S[1]


def test_other_seeds_give_other_faults() -> None:
    assert len({drawn(seed, 8, 90) for seed in range(20)}) == 20


# --- striking ---------------------------------------------------------------------------------------------------------
@given(st.integers(0, 1_000), st.lists(st.booleans(), max_size=6))
def test_a_session_actor_that_owns_something_is_struck(draw: int, owns: list[bool]) -> None:
    actors = [Process("session-actor", f"session-{i}", i + 1, (i,) if owning else ()) for i, owning in enumerate(owns)]
    chosen = choose(Fault("kill", "session-actor", 1.0, draw=draw), [*actors, Process("driver", "driver-1", 99, (0,))])
    assert (chosen is not None) == any(owns)
    assert chosen is None or (chosen.partitions and chosen.target == "session-actor")


def test_each_of_several_is_struck_by_some_draw() -> None:
    fleets = [Process("fleet", f"fleet-{i}", i, (i,)) for i in range(3)]
    assert {choose(Fault("kill", "fleet", 1.0, draw=draw), fleets) for draw in range(3)} == set(fleets)
    assert choose(Fault("kill", "committer", 1.0), [Process("committer", "committer", 5)]) == Process("committer", "committer", 5)


def ward(kind: str, name: str, pid: int, **told: object) -> dict[str, object]:
    usual = {"state": "running", "is_down": False, "is_lost": False, "partitions": [], "turns": 5, "incarnation": f"{name}-{pid}"}
    return {"kind": kind, "name": name, "pid": pid, **usual, **told}


def test_actors_that_are_down_or_lost_are_no_targets() -> None:
    wards = [
        ward("session", "session-0", 1, is_down=True),
        ward("session", "session-1", 2, partitions=[0], epochs={"0": 3}),
        ward("session", "session-2", 3, is_lost=True),
        ward("committer", "committer", 4, state="building"),
        ward("supervisor", "supervisor", 5),
    ]
    assert actors_of({"wards": wards}) == [Process("session-actor", "session-1", 2, (0,), ((0, 3),)), Process("supervisor", "supervisor", 5)]
    assert actors_of({}) == []


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_process_of_ours_is_killed_and_another_is_left_alone() -> None:
    child = sleeper()
    try:
        striker = Striker(Chaos("", (Fault("kill", "driver", 1.0), Fault("kill", "fleet", 2.0))))
        assert striker.due(0.9) is None
        fault = striker.due(1.0)
        assert fault is not None
        assert striker.strike(fault, [Process("driver", "parent", psutil.Process().ppid())], 1.0) is None  # not below us
        assert striker.strike(fault, [Process("fleet", "fleet", child.pid)], 1.0) is None  # not what is asked for
        struck = striker.strike(fault, [Process("driver", "driver", child.pid, (0,), ((0, 2),))], 1.2)
        assert struck is not None
        assert (struck.pid, struck.partitions, struck.epochs, struck.at_s) == (child.pid, (0,), {0: 2}, 1.2)
        assert child.wait() == -signal.SIGKILL
        assert striker.strike(Fault("kill", "driver", 1.0), [Process("driver", "driver", child.pid)], 1.3) is None  # it is gone
        assert [str(fault) for fault in striker.left()] == ["kill:fleet@2s"]
    finally:
        child.kill()
        child.wait()


@pytest.mark.slow
@pytest.mark.parametrize("everything", [False, True])
def test_what_was_frozen_is_thawed(everything: bool) -> None:
    child = sleeper()
    try:
        fault = Fault("freeze", "fleet", 1.0, 60.0 if everything else 0.2)
        striker = Striker(Chaos("", (fault,)))
        assert striker.strike(fault, [Process("fleet", "fleet", child.pid)], 1.0) is not None
        until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
        striker.thaw()
        assert striker.has_frozen
        if not everything:
            time.sleep(0.2)
        striker.thaw(everything=everything)
        until(lambda: psutil.Process(child.pid).status() != psutil.STATUS_STOPPED)
        assert not striker.has_frozen
    finally:
        child.kill()
        child.wait()


def until(claim) -> None:
    end_s = time.monotonic() + 10
    while not claim():
        assert time.monotonic() < end_s
        time.sleep(0.01)


# --- signs of work ----------------------------------------------------------------------------------------------------
def struck(target: str, action: str = "kill", for_s: float = 0.0) -> Struck:
    return Struck(Fault(action, target, 1.0, for_s), 1.0, 1_000.0, target, 7, (0, 1), {0: 3, 1: 3})


def word(*wards: dict[str, object], at_ms: float = 2_000.0, phase: str = "running") -> dict[str, object]:
    return {"at_ms": at_ms, "phase": phase, "wards": list(wards)}


def test_a_killed_owner_is_followed_when_all_its_partitions_have_a_later_epoch() -> None:
    sign = sign_of(word())
    killed = struck("session-actor")
    assert not sign.is_given(killed, word(ward("session", "session-0", 7, epochs={"0": 3, "1": 3})), [])  # a word from before
    assert not sign.is_given(killed, word(ward("session", "session-1", 8, epochs={"0": 4})), [])
    assert not sign.is_given(killed, word(ward("session", "session-1", 8, epochs={"0": 4, "1": 4}), at_ms=999.0), [])
    assert not sign.is_given(killed, word(ward("session", "session-1", 8, epochs={"0": 4, "1": 4}), phase="building"), [])
    assert sign.is_given(killed, word(ward("session", "session-1", 8, epochs={"0": 4}), ward("session", "session-2", 9, epochs={"1": 5})), [])
    assert sign.is_given(struck("driver"), word(ward("session", "session-1", 8, epochs={"0": 4, "1": 4})), [])


def test_one_that_was_frozen_may_go_on_itself_but_not_before_it_is_thawed() -> None:
    frozen = struck("session-actor", "freeze", 2.0)
    owner = ward("session", "session-0", 7, epochs={"0": 3, "1": 3})
    assert not sign_of(word(owner)).is_given(frozen, word(owner, at_ms=2_999.0), [])
    assert sign_of(word(owner)).is_given(frozen, word(owner, at_ms=3_001.0), [])


@pytest.mark.parametrize("kind", ["committer", "supervisor"])
def test_one_without_partitions_is_followed_by_another_incarnation_that_has_taken_a_turn(kind: str) -> None:
    sign = sign_of(word(ward(kind, kind, 7)))
    assert not sign.is_given(struck(kind), word(ward(kind, kind, 7)), [])
    assert not sign.is_given(struck(kind), word(ward(kind, kind, 8, turns=0)), [])
    assert sign.is_given(struck(kind), word(ward(kind, kind, 8)), [])


def test_a_fleet_is_followed_when_another_process_has_sent() -> None:
    sign = sign_of({})
    mine, other = Process("fleet", "fleet-0-2", 8, (0, 1)), Process("fleet", "fleet-1-1", 9, (2,))
    assert not sign.is_given(struck("fleet"), {}, [(Process("fleet", "fleet-0-1", 7, (0, 1)), 1_001.0)])
    assert not sign.is_given(struck("fleet"), {}, [(mine, 0.0), (other, 1_500.0)])
    assert sign.is_given(struck("fleet"), {}, [(mine, 1_500.0)])


# --- processes that are told and heard ----------------------------------------------------------------------------------
ECHO = """
import sys
from pathlib import Path
from keystone.bench.children import Ear, Mouth
ear = Ear(sys.argv[1])
mouth = Mouth(Path(ear.order["dir"]), "echo")
mouth.say({"heard": []})
heard = []
while not ear.is_orphan:
    heard += ear.hear(5.0)
    mouth.say({"heard": heard})
print("an orphan", flush=True)
"""


def test_a_child_hears_what_it_is_told_and_ends_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo_child.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    child = Child("echo_child", "echo", tmp_path, {"dir": str(tmp_path)})
    try:
        until(lambda: child.status() != {})
        child.tell(go=12.5)
        child.tell(finish=True)
        until(lambda: child.status()["heard"] == [{"go": 12.5}, {"finish": True}])
        assert child.ended is None
    finally:
        child.end()
    assert child.ended == 0
    assert child.last_lines() == "an orphan"
    child.tell(too="late")
