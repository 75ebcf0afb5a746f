"""Whether the head of a cluster that we have joined is still reached, and an end in one line where it stays away.

Ray asks for its head for 60 s and then ends the process with a stack trace of its own. Within that time a head that keeps its state may come back,
and nothing that reads, detects or writes needs it meanwhile.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from keystone.logs import get

LOOK_EVERY_S: Final = 1.0
CONNECT_S: Final = 2.0
PATIENCE: Final = "RAY_gcs_rpc_server_reconnect_timeout_s"  # of Ray's own processes: a setting of the nodes
PATIENCE_S: Final = 60.0  # Ray's default
MARGIN_S: Final = 10.0  # so long before Ray we give up
TOLD_AFTER_S: Final = 5.0  # for the log

log = get(__name__)


class HeadWatch:
    """``address``: HOST:PORT of the head's GCS. ``on_gone`` is called once, in a thread, when it was away for ``away_max_s``."""

    def __init__(self, address: str, on_gone: Callable[[str], None], clock_s: Callable[[], float] = time.monotonic, away_max_s: float | None = None) -> None:
        host, _, port = address.rpartition(":")
        self._place = (host.strip("[]"), int(port))
        self.address = address
        self._on_gone, self._clock_s = on_gone, clock_s
        self._away_max_s = _away_max_s() if away_max_s is None else away_max_s
        self._seen_s = clock_s()
        self._is_told = False
        self._stopping = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="head-watch", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def look(self) -> bool:
        """True while there is hope."""
        if self._answers():
            if self._is_told:
                log.warning("the cluster's head answers again", address=self.address)
            self._seen_s, self._is_told = self._clock_s(), False
            return True
        away_s = self._clock_s() - self._seen_s
        if away_s > TOLD_AFTER_S and not self._is_told:
            self._is_told = True
            log.warning("the cluster's head does not answer: whoever reads goes on", address=self.address)
        return away_s < self._away_max_s

    def _answers(self) -> bool:
        try:
            socket.create_connection(self._place, timeout=CONNECT_S).close()
        except OSError:
            return False
        return True

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            if not self.look():
                if not self._stopping.is_set():
                    self._on_gone(
                        f"Error: the head of the cluster ({self.address}) has not answered for {self._away_max_s:.0f} s:"
                        " start the cluster and this program again (a run goes on where its state says)"
                    )
                return


def _away_max_s() -> float:
    """As long as Ray waits, but for a margin."""
    try:
        patience_s = float(os.environ.get(PATIENCE, PATIENCE_S))
    except ValueError:  # Ray refuses it by itself
        patience_s = PATIENCE_S
    return max(MARGIN_S, patience_s - MARGIN_S)


def end_process(line: str) -> None:
    """At once, with status 1: other threads wait for Ray, and it answers nobody."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
    os._exit(1)
