"""A detached run over hosts, devices that send meanwhile, and what must have come of it whatever happened to the hosts."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.cluster.ray_cluster import RayOnHosts
from tests.kafka_server import KafkaCluster

NAME = "viewing"
#: The launcher has a home of its own, and would compile them all for minutes.
KERNELS = os.environ.get("KEYSTONE_CACHE_DIR") or Path.home() / ".cache" / "keystone"
PARTITIONS = 4
ENV = "env KEYSTONE_KAFKA__ALLOW_PLAINTEXT=true"
EPS, SECONDS = 1_000, 60  # enough for some hundreds of alerts
PATIENCE_S = 240.0


class RunOnHosts:
    """``begin`` it, let devices ``send``, break hosts, ``end`` it: it is compared with what was sent."""

    def __init__(self, ray: RayOnHosts, kafka: KafkaCluster, folder: Path) -> None:
        """``folder``: one that all hosts see."""
        self._ray, self._folder = ray, folder
        self._server = f"kafka://{kafka.servers[0]}"
        self._devices = ThreadPoolExecutor(1)
        folder.mkdir(exist_ok=True)
        words = f"--partitions {PARTITIONS}"
        self._launcher(f"keystone topics create --log {self._server} {words}")

    def begin(self, on: int = 1) -> str:
        """From host ``on``; what it said when it read."""
        where = f"--log {self._server} --lake {self._folder}/lake --session-actors 2"
        return self._ray.on(on, f"{ENV} python -m keystone run {where} --detach {NAME}", PATIENCE_S)

    def send(self) -> Future[str]:
        """For ``SECONDS``, in the background; what the simulator said is the result."""
        words = f"--log {self._server} --eps {EPS} --seconds {SECONDS} --truth {self._folder}/truth.parquet"
        return self._devices.submit(self._launcher, f"keystone simulate {words}")

    def status(self, on: int = 1) -> dict[str, Any]:
        """As ``keystone status --json`` has it."""
        said = self._ray.on(on, "python -m keystone status --json || true", PATIENCE_S)
        found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        return found[0] if found else {"state": "unknown", "said": said}

    def wait_read(self, on: int = 1) -> dict[str, Any]:
        """Until it runs and lags behind nothing: what its screen would show."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            told = self.status(on)
            if told["state"] == "running" and told["seen"].get("lag_events") == 0 and told["seen"].get("quiet_ms", 0) > 12_000:
                seen: dict[str, Any] = told["seen"]
                return seen
            assert time.monotonic() < deadline, told
            time.sleep(1)

    def end(self, on: int = 1) -> dict[str, Any]:
        """Its report, after everything was compared: lake, actions and dead letters with the log, actions with the truth."""
        said = self._ray.on(on, f"python -m keystone stop {NAME} --report {self._folder}/report.json", PATIENCE_S)
        assert "FAILED" not in said, said
        self._launcher(f"keystone audit --log {self._server} --lake {self._folder}/lake")
        actions = f"--actions {self._server}/keystone-actions --json {self._folder}/score.json"
        self._launcher(f"keystone score --truth {self._folder}/truth.parquet {actions} || true")  # what was late is none the less right
        score = json.loads((self._folder / "score.json").read_bytes())
        truth = score["truth"]
        assert truth["expected"] == truth["alerted"] > 0, truth
        assert (truth["missed"], truth["false"], truth["duplicate"]) == (0, 0, 0), truth
        report: dict[str, Any] = json.loads((self._folder / "report.json").read_bytes())
        return report | {"score": score}

    def _launcher(self, command: str) -> str:
        return self._ray.hosts.launcher(f"{ENV} python -m {command}", PATIENCE_S, KEYSTONE_CACHE_DIR=str(KERNELS))
