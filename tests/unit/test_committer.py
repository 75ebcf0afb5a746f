"""The committer: whose checkpoints it believes, what it tells, and that its actor lives and ends as actors do."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from keystone.actors import committer as module
from keystone.actors.committer import COMMITTER, CommitterActor, CommitterSpec, Committing
from keystone.checkpoint import Checkpoint, Checkpoints, key_of
from keystone.clock import ManualClock
from keystone.config import LakeConfig
from keystone.errors import ChainBroken, Fenced, SinkBusy, StoreUnavailable
from keystone.metrics import Ledger
from keystone.store import open_store
from tests.lake_batches import APPEND_MS
from tests.lake_tables import Owner, expected_places, opened, places

pytestmark = pytest.mark.slow


class Epochs:
    def __init__(self, **current):
        self.now = {COMMITTER: 1, **current}

    def current(self, key):
        return self.now.get(key, 0)

    def check(self, key, epoch):
        if self.now[key] != epoch:
            raise Fenced(key, epoch, self.now[key])


def header(segments, partition=0, epoch=1):
    return SimpleNamespace(partition=partition, epoch=epoch, segments=tuple(segments))


def test_segments_of_checkpoints_are_committed_and_told(tables, lake):
    clock = ManualClock(APPEND_MS + 5_000)
    committing = Committing(Epochs(p00000=1, p00001=4), tables, 1, clock)
    a, b = Owner(lake), Owner(lake, 1, epoch=4)
    first = [a.segment(), a.segment(), b.segment()]
    assert committing.turn([header(first[:2]), header(first[2:], 1, 4)]) == {0: 2, 1: 1}
    assert (committing.commits, committing.segments, committing.files, committing.lag_ms) == (1, 3, 9, 0)
    assert committing.turn([header(first[:2]), header(first[2:], 1, 4)]) == {0: 2, 1: 1}
    assert committing.commits == 1
    more = a.segment()
    assert committing.turn([header([*first[:2], more])]) == {0: 3, 1: 1}
    assert places(tables) == expected_places([*first, more])


def test_the_age_is_none_of_the_clock(tables, lake):
    clock = ManualClock(APPEND_MS + 5_000)
    committing = Committing(Epochs(p00000=1), tables, 1, clock)
    owner = Owner(lake)
    first = [replace(owner.segment(), log_time_ms=0), owner.segment()]  # as of a partition that was saved before its first record
    committing.turn([header(first[:1])])
    committing.turn([header(first)])
    assert committing.age_ms_max == 0
    before_ms = committing._log_times[0]
    later = replace(owner.segment(), log_time_ms=before_ms + 1_000)
    committing.turn([header([*first, later])])
    assert committing.age_ms_max == clock.now_ms() - before_ms < 60_000


def test_headers_of_owners_that_were_replaced_are_left_alone(tables, lake):
    epochs = Epochs(p00000=2, p00001=1)
    committing = Committing(epochs, tables, 1, ManualClock(APPEND_MS + 5_000))
    zombie, good = Owner(lake, epoch=1).segment(), Owner(lake, 1).segment()
    assert committing.turn([header([zombie], 0, 1), header([good], 1, 1)]) == {1: 1}
    assert committing.fenced_writes == 1
    successor = Owner(lake, epoch=2).segment()
    assert committing.turn([header([successor], 0, 2)]) == {0: 1, 1: 1}


def test_a_committer_that_was_replaced_ends(tables, lake):
    epochs = Epochs(p00000=1)
    committing = Committing(epochs, tables, 1)
    epochs.now[COMMITTER] = 2
    with pytest.raises(Fenced):
        committing.turn([header([Owner(lake).segment()])])
    assert places(tables) == []


def test_a_broken_chain_is_raised_once_the_others_are_in(tables, lake):
    committing = Committing(Epochs(p00000=1, p00001=1), tables, 1, ManualClock(APPEND_MS + 60_000))
    bad, good = Owner(lake, sequence=3), Owner(lake, 1).segment()
    with pytest.raises(ChainBroken, match="partition 0"):
        committing.turn([header([bad.segment()]), header([good], 1)])
    assert committing.committed == {1: 1}
    assert committing.lag_ms == 60_000


def test_snapshots_expire_and_files_are_swept_when_due(lake):
    tables = opened(lake, expire_every_commits=3, snapshots_kept=2, sweep_interval_ms=1_000, orphan_age_ms=1_000)
    clock = ManualClock(APPEND_MS)
    committing = Committing(Epochs(p00000=1), tables, 1, clock)
    owner, segments = Owner(lake), []
    for _ in range(8):
        segments.append(owner.segment(sessions=0, alerts=0))
        committing.turn([header(segments[-1:])])
        clock.advance(600)
    assert committing.expired == 1 + 3
    assert committing.deleted > 0
    assert places(tables) == expected_places(segments)


# --- the actor ------------------------------------------------------------------------------------------------------------------
def ended(actor):
    deadline = time.monotonic() + 20
    while actor.status()["state"] not in ("finished", "failed"):
        assert time.monotonic() < deadline, actor.status()
        time.sleep(0.02)
    return actor.status()


def until(actor, **wanted):
    deadline = time.monotonic() + 20
    while any(actor.status().get(name) != value for name, value in wanted.items()):
        assert time.monotonic() < deadline, actor.status()
        time.sleep(0.02)


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SLEEP_MAX_S", 0.02)
    found = Checkpoints(open_store(str(tmp_path / "checkpoints")))
    found.claim(key_of(0), "test")
    return found


def save(checkpoints, segments, sequence):
    last = segments[-1]
    checkpoints.save(Checkpoint(0, 1, sequence, last.next_offset, last.log_time_ms, Ledger(), tuple(segments)))


def actor_of(lake, tmp_path, **settings):
    actor = CommitterActor(CommitterSpec(str(lake), str(tmp_path / "checkpoints"), str(tmp_path), LakeConfig(**{"commit_interval_ms": 30, **settings})))
    actor.begin()
    return actor


@pytest.mark.slow
def test_the_actor_commits_until_it_is_told_to_finish(tables, lake, tmp_path, checkpoints):
    owner = Owner(lake)
    segments = [owner.segment()]
    save(checkpoints, segments, 0)
    actor = actor_of(lake, tmp_path)
    until(actor, committed={0: 1}, busy=None)
    segments.append(owner.segment())
    save(checkpoints, segments, 1)
    actor.finish()
    status = ended(actor)
    assert (status["state"], status["committed"], status["epoch"]) == ("finished", {0: 2}, 1)
    assert actor.result()["commits"] == 2
    assert places(tables) == expected_places(segments)


def test_the_actor_commits_nothing_of_an_owner_that_was_replaced(tables, lake, tmp_path, checkpoints):
    save(checkpoints, [Owner(lake).segment()], 0)
    checkpoints.claim(key_of(0), "another")
    actor = actor_of(lake, tmp_path)
    until(actor, committed={}, state="running")
    actor.finish()
    assert ended(actor)["fenced_writes"] >= 1
    assert places(tables) == []


def test_the_actor_fails_where_another_took_over(lake, tmp_path, checkpoints):
    actor = actor_of(lake, tmp_path, commit_interval_ms=50)
    until(actor, epoch=1)
    checkpoints.claim(COMMITTER, "another")
    status = ended(actor)
    assert status["state"] == "failed"
    assert "committer belongs to epoch 2 now" in status["error"]


@pytest.mark.parametrize("error", [SinkBusy("away"), StoreUnavailable("away")])
def test_busy_is_told_and_tried_again(lake, tmp_path, checkpoints, monkeypatch, error):
    monkeypatch.setattr(module, "BUSY_WAIT_MAX_S", 0.05)
    monkeypatch.setattr(Committing, "turn", lambda self, headers: (_ for _ in ()).throw(error))
    actor = actor_of(lake, tmp_path)
    until(actor, busy="away", state="running")
    actor.finish()
    time.sleep(0.1)
    assert actor.status()["state"] == "running", "it has not committed what there is"
    monkeypatch.setattr(Committing, "turn", lambda self, headers: {})
    assert ended(actor)["state"] == "finished"
