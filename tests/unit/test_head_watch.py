"""A head that is away for a while is waited for; one that stays away ends the program in one line."""

from __future__ import annotations

import socket
import threading

import pytest

from keystone.actors import head_watch
from keystone.actors.head_watch import PATIENCE, HeadWatch

AWAY_MAX_S = 50.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def listening(port: int = 0) -> socket.socket:
    server = socket.create_server(("127.0.0.1", port))
    server.listen()
    return server


def test_a_head_that_comes_back_is_as_if_it_had_never_been_away() -> None:
    clock, gone = Clock(), list[str]()
    server = listening()
    port = server.getsockname()[1]
    watch = HeadWatch(f"127.0.0.1:{port}", gone.append, clock)
    assert watch.look()
    server.close()
    clock.now_s += AWAY_MAX_S - 1
    assert watch.look(), "there is hope"
    with listening(port):
        assert watch.look()
    clock.now_s += AWAY_MAX_S - 1
    assert watch.look(), "counted from when it answered last"
    clock.now_s += 2
    assert not watch.look()


def test_one_that_stays_away_is_told_once(monkeypatch) -> None:
    monkeypatch.setattr(head_watch, "LOOK_EVERY_S", 0.01)
    server = listening()
    address = f"127.0.0.1:{server.getsockname()[1]}"
    said, gone = list[str](), threading.Event()

    def end(line: str) -> None:
        said.append(line)
        gone.set()

    watch = HeadWatch(address, end, away_max_s=0.05)
    watch.start()
    server.close()
    assert gone.wait(30)
    assert len(said) == 1
    assert address in said[0]
    assert "start the cluster and this program again" in said[0]


def test_a_program_that_ends_watches_no_more(monkeypatch) -> None:
    monkeypatch.setattr(head_watch, "LOOK_EVERY_S", 0.05)
    said = list[str]()
    watch = HeadWatch("127.0.0.1:1", said.append, away_max_s=0.0)
    watch.start()
    watch.stop()
    for thread in [thread for thread in threading.enumerate() if thread.name == "head-watch"]:
        thread.join(30)
    assert said == []


@pytest.mark.parametrize(("setting", "away_s"), [(None, 50), ("300", 290), ("12", 10), ("soon", 50)])
def test_it_is_patient_for_a_little_less_than_ray_is(monkeypatch, setting, away_s) -> None:
    if setting is None:
        monkeypatch.delenv(PATIENCE, raising=False)
    else:
        monkeypatch.setenv(PATIENCE, setting)
    clock = Clock()
    watch = HeadWatch("127.0.0.1:1", list[str]().append, clock)
    clock.now_s += away_s - 1
    assert watch.look()
    clock.now_s += 2
    assert not watch.look()
