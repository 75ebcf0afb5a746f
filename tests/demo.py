"""The whole way on real servers, in one command: devices -> Kafka -> run -> search server and Iceberg on S3, then everything compared.

python -m tests.demo [--eps 20000] [--seconds 30]     # ends with PASS or FAIL; what runs and says what is in demo-out

It starts a Kafka broker, a search server and an S3 server on 127.0.0.1, which end with it. Compared are the rows of the lake, read by Polars
from S3, with what was acknowledged; a terms aggregation of alerts by region and device type with the simulator's truth; the actions' topic with
that truth; and log, lake, index and dead letters by ``keystone audit``.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from keystone.config import ElasticConfig, LakeConfig
from keystone.sinks.elastic_admin import setup
from keystone.sinks.elastic_http import Nodes
from keystone.sinks.iceberg.tables import LakeTables
from tests.kafka_server import KafkaCluster
from tests.s3_server import S3Server, gateway
from tests.search_server import FLAVORS, SearchServer

READY_S_MAX = 240.0  # of a run: the first on a machine compiles
END_S_MAX = 300.0
IDLE_S = 15  # without a record, until the run ends
BUCKET = "lake"


class DemoError(Exception):
    """A step that did not do what it should; what follows makes no sense."""


@dataclass
class Demo:
    """Everything of one demonstration. ``kafka search s3``: running servers."""

    out: Path
    kafka: str
    search: SearchServer
    s3: S3Server
    env: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def lake(self) -> str:
        return f"s3://{BUCKET}/demo"

    def say(self, line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def judge(self, what: str, *, is_right: bool) -> None:
        self.say(f"{'ok   ' if is_right else 'WRONG'}  {what}")
        if not is_right:
            self.wrong.append(what)

    # --- commands -----------------------------------------------------------------------------------------------------
    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """A command of ours in the background; what it says goes to a file of that name."""
        with (self.out / f"{name}.txt").open("wb") as said:
            return subprocess.Popen([sys.executable, "-m", "keystone", *words], stdout=said, stderr=subprocess.STDOUT, env=self.env)

    def said(self, name: str) -> str:
        return (self.out / f"{name}.txt").read_text(errors="replace")

    def done(self, name: str, *words: str) -> int:
        """A command to its end; its status."""
        return self.start(name, *words).wait(END_S_MAX)

    # --- the way ------------------------------------------------------------------------------------------------------
    def prepare(self) -> None:
        self.s3.make_bucket(BUCKET)
        for line in setup(Nodes(self.search.url, ElasticConfig())):
            self.say(f"       {line}")
        if self.done("topics", "topics", "create", "--log", self.kafka) != 0:
            raise DemoError(self.said("topics"))

    def run(self, eps: int, seconds: int, during: Any = None) -> None:
        """Devices and a run beside each other; ``during(simulation)`` may disturb the servers."""
        words = ("--log", self.kafka, "--lake", self.lake, "--elastic", self.search.url, "--no-story", "--until-idle", str(IDLE_S))
        running = self.start("run", "run", *words, "--report", str(self.out / "report.json"))
        try:
            self._wait_for_reading(running)
            self.say(f"       {eps:,} events/s for {seconds} s; meanwhile: keystone top --elastic {self.search.url}")
            truth = str(self.out / "truth.parquet")
            sending = self.start("simulate", "simulate", "--log", self.kafka, "--eps", str(eps), "--seconds", str(seconds), "--truth", truth)
            if during is not None:
                during(sending)
            if sending.wait(END_S_MAX + seconds) != 0:
                raise DemoError(self.said("simulate"))
            status = running.wait(END_S_MAX)
        finally:
            if running.poll() is None:
                running.send_signal(signal.SIGINT)
                running.wait(END_S_MAX)
        self.judge(f"run: {self.said('run').splitlines()[-2]}", is_right=status == 0)

    def _wait_for_reading(self, running: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_S_MAX
        while not re.search("(?m)^reading ", self.said("run")):
            if running.poll() is not None or time.monotonic() > deadline:
                raise DemoError(self.said("run"))
            time.sleep(0.1)

    # --- what came of it ----------------------------------------------------------------------------------------------
    def compare(self) -> None:
        events = self.events()
        acknowledged = int(re.findall(r"= acknowledged ([\d,]+)", self.said("simulate"))[-1].replace(",", ""))
        self.judge(
            f"lake: {events.height:,} rows read by Polars from {self.lake}, {acknowledged:,} events acknowledged", is_right=events.height == acknowledged
        )
        distinct = events.select("partition", "offset", "line").n_unique()
        self.judge(f"lake: {distinct:,} distinct places in the log", is_right=distinct == events.height)
        truth, found = self.truth(events), self.indexed()
        total, most = sum(truth.values()), ", ".join(f"{region} {device} {count}" for (region, device), count in truth.most_common(3))
        self.judge(f"index: alerts of {len(found)} regions and device types are the truth's {total:,}, such as {most}", is_right=found == truth)
        self.judge("actions: " + self._tail("score", "score", "--truth", str(self.out / "truth.parquet"), "--actions", self.actions), is_right=self.status == 0)
        words = ("--log", self.kafka, "--lake", self.lake, "--elastic", self.search.url)
        self.judge("audit: " + self._tail("audit", "audit", *words), is_right=self.status == 0)

    @property
    def actions(self) -> str:
        return self.kafka.rpartition("/")[0] + "/keystone-actions"

    def _tail(self, name: str, *words: str) -> str:
        """The last line of a command's words; ``status`` is its own."""
        self.status = self.done(name, *words)
        lines = self.said(name).strip().splitlines()
        return (lines[0] if name == "score" else lines[-1]) if lines else ""

    def events(self) -> pl.DataFrame:
        tables = LakeTables.open(self.lake, LakeConfig(), is_made=False)
        try:
            columns = ("partition", "offset", "line", "device_id", "session_id", "region", "device_type")
            return pl.scan_iceberg(tables.load("events"), reader_override="native").select(columns).collect()
        finally:
            tables.close()

    def truth(self, events: pl.DataFrame) -> Counter[tuple[str, str]]:
        """Expected alerts by region and device type: whose they are says the truth, where these devices are say their events."""
        devices = events.select("device_id", "session_id", "region", "device_type").unique(["device_id", "session_id"])
        expected = pl.read_parquet(self.out / "truth.parquet").select("device_id", "session_id").join(devices, on=["device_id", "session_id"], how="left")
        return Counter((row["region"], row["device_type"]) for row in expected.iter_rows(named=True))

    def indexed(self) -> Counter[tuple[str, str]]:
        self.search.call("POST", "/keystone-alerts-*/_refresh")
        by = {"region": {"terms": {"field": "region", "size": 1_000}, "aggs": {"device": {"terms": {"field": "device_type", "size": 1_000}}}}}
        found = self.search.call("POST", "/keystone-alerts-*/_search", {"size": 0, "aggs": by})["aggregations"]["region"]["buckets"]
        return Counter({(region["key"], device["key"]): device["doc_count"] for region in found for device in region["device"]["buckets"]})


def demonstrate(out: Path, *, eps: int, seconds: int, flavor: str, kind: Any, during: Any = None) -> list[str]:
    """Start the servers, go the whole way, compare; what is wrong."""
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        began_s = time.monotonic()
        kafka = held.enter_context(KafkaCluster())
        search, s3 = held.enter_context(SearchServer(flavor)), held.enter_context(S3Server(kind))
        home = {"XDG_DATA_HOME": str(out.absolute() / "home"), "POLARS_ICEBERG_PLANNER": "pyiceberg"}
        variables = {**s3.env(), **home}
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        held.callback(_restore, before)
        url = f"kafka://{','.join(kafka.servers)}/keystone-telemetry"
        demo = Demo(out, url, search, s3, {**os.environ})
        demo.say(f"       Kafka {url}, {flavor} {search.url}, {kind} {s3.url}: ready in {time.monotonic() - began_s:.0f} s")
        demo.prepare()
        demo.run(eps, seconds, None if during is None else lambda sending: during(demo, sending))
        demo.compare()
        return demo.wrong


def _restore(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def main() -> int:
    parser = argparse.ArgumentParser(description="Devices, Kafka, a run, a search server and a lake on S3, all real; then everything compared.")
    parser.add_argument("--eps", type=int, default=20_000)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="what runs say, truth and report; must be empty or absent")
    parser.add_argument("--search", choices=FLAVORS, default="opensearch")
    parser.add_argument("--s3", choices=["moto", "versitygw"], default="versitygw" if gateway() else "moto")
    given = parser.parse_args()
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"{given.out} is not empty: remove it, or choose another by --out")
    try:
        wrong = demonstrate(given.out, eps=given.eps, seconds=given.seconds, flavor=given.search, kind=given.s3)
    except DemoError as error:
        sys.stdout.write(f"{error}\nFAIL  what ran and what it said is in {given.out}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(f"{'FAIL' if wrong else 'PASS'}  what ran and what it said is in {given.out}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
