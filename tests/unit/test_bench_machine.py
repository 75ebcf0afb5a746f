"""What is told of the machine that a figure was measured on."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from keystone.bench import machine
from keystone.bench.machine import StealMeter, stolen_note


def test_what_the_host_gives_to_others_is_told_in_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, stolen_s = 100.0, 7.0
    monkeypatch.setattr(machine.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(user=1.0, steal=stolen_s))
    meter = StealMeter()
    now_s, stolen_s = 110.0, 9.5
    assert meter.cores() == 0.25
    assert stolen_note(0.25, 2) == "the host gave 0.25 of the 2 cores to others meanwhile (steal): on a quiet host this machine does more"
    assert stolen_note(0.05, 2) is None
    assert stolen_note(0.25, 64) is None


def test_where_nobody_tells_nothing_is_stolen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(user=1.0))
    assert StealMeter().cores() == 0.0
