"""Session actors that follow each other over one log: whatever the earlier ones left, the lake and the alerts are those of one that never ended."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keystone.actors.leases import Leases
from keystone.actors.trail import alerts_path, trail_names
from tests.stories import IDLE_MS, PARTITIONS, Story


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    told = Story(tmp_path)
    yield told
    told.log.close()


@pytest.mark.slow
def test_an_actor_goes_on_where_the_last_one_ended(story: Story) -> None:
    for seed in range(3):
        story.write(seed)
        totals = story.run(idle_ms=IDLE_MS if seed == 2 else 0)
        if seed != 1:
            story.commit()
    story.commit()
    story.assert_all(totals)


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [1, 2])
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_checkpoint_damaged_after_its_files_were_committed_costs_and_doubles_nothing(story: Story, damaged: int, *, is_cut: bool) -> None:
    """The one before is gone on from, and what the lake has since is not given to it again."""
    story.write(0)
    actor = story.begin()
    time.sleep(1.0)
    story.write(1)
    time.sleep(0.7)
    story.write(2)
    story.end(actor)
    story.commit()
    for path in story.newest(1)[:damaged]:
        size = path.stat().st_size
        if is_cut:
            os.truncate(path, size - 1)
        else:
            with path.open("r+b") as file:
                file.seek(size // 2)
                byte = file.read(1)
                file.seek(size // 2)
                file.write(bytes([byte[0] ^ 1]))
    story.write(3)
    totals = story.run(IDLE_MS)
    story.commit()
    story.assert_all(totals)


@pytest.mark.slow
def test_an_owner_that_is_fenced_writes_nothing_that_counts(story: Story) -> None:
    """Another claims its partitions in the midst of its work: it ends itself, and nothing of it is there twice."""
    story.write(0)
    first = story.begin()
    until = time.monotonic() + 30
    while len(first.status().get("partitions", ())) < PARTITIONS:
        assert time.monotonic() < until, first.status()
        time.sleep(0.01)  # or it might claim after the second, and fence that one
    time.sleep(0.8)
    story.write(1)
    second = story.begin()
    until = time.monotonic() + 30
    while not first.status()["is_fenced"]:
        assert time.monotonic() < until, (first.status(), second.status())
        time.sleep(0.01)
    story.write(2)
    totals = story.end(second, IDLE_MS)
    story.commit()
    story.assert_all(totals)


@pytest.mark.slow
def test_alerts_wait_while_nobody_can_say_whose_the_partition_is(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look right before they are given out may fail: they are counted, and given out later."""
    is_known, usual = False, Leases.is_held

    def is_held(leases: Leases, key: str) -> bool:
        is_asked_by_send = sys._getframe(1).f_code.co_name == "_send"
        return usual(leases, key) and (is_known or not is_asked_by_send)

    monkeypatch.setattr(Leases, "is_held", is_held)
    story.write(0)
    actor = story.begin()
    until = time.monotonic() + 20
    while not actor.status().get("undelivered"):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert not [name for name in trail_names(story.folder) if alerts_path(story.folder, name).read_bytes()], "nothing was said"
    is_known = True
    totals = story.end(actor, idle_ms=IDLE_MS)
    assert totals.undelivered == 0
    story.commit()
    story.assert_all(totals)
