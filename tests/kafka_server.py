"""Real Apache Kafka brokers for tests, benchmarks and people: format, start, stop, kill, pause, restart.

with KafkaCluster(brokers=3) as kafka:
    produce(kafka.servers); kafka.kill(0); kafka.restart(0)
with KafkaCluster(security=Security({"alice": "secret"}, authorize=True)) as kafka:
    produce(kafka.servers, **kafka.login("alice"))

python -m tests.kafka_server --brokers 1 --throughput      # prints kafka://127.0.0.1:PORT and runs until Ctrl-C or SIGTERM
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from tests.kafka_processes import claim_port, class_archive, jars, java, own_folder, start_bound
from tests.kafka_security import Security, write_certificates

__all__ = ["QUICK", "THROUGHPUT", "KafkaCluster", "Security"]

QUICK = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")  # a start costs 2.4 s of CPU, not 4; with the class archive 1.1
THROUGHPUT = ("-Xmx512m", "-XX:+UseSerialGC")  # the optimizing compiler is worth its warming up
#: No machine code in the archive: it would tie it to this processor, and this Java warns of mismatches in its own.
ARCHIVE_FLAGS = ("-XX:+UnlockDiagnosticVMOptions", "-XX:-AOTAdapterCaching", "-Xlog:disable", "-Xlog:all=error:stderr")
BROKER = "kafka.Kafka"
ENDINGS = (signal.SIGINT, signal.SIGTERM)
LOG_LEVEL = "-Dorg.apache.logging.log4j.level=INFO"  # without it the log stays empty
READY = "Kafka Server started"  # said once the broker is known to the controller and takes requests
READY_S_MAX = 120.0  # three brokers took 44 s beside twelve busy processes on two cores
STOP_S_MAX = 30.0
CLUSTER_ID = "S2V5c3RvbmVUZXN0czEyMw"  # any 16 bytes in unpadded URL-safe base64
LISTENERS = ("CLIENT", "INTERNAL", "CONTROLLER")  # INTERNAL is plaintext always, and its clients are administrators
PORTS = range(12_000, 32_000)  # below the usual ephemeral range: no client socket can take the port of a broker that is down
RECORD_BYTES_MAX = 10 << 20  # frames of Keystone are up to 8 MiB


def free_port() -> int:
    """A port that nobody listens on, and that neither this process nor another one that runs was given before."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the broker does: a connection that lingers is no hindrance
            if not _refuses(probe, port) and claim_port(port):
                return port


def _refuses(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return True
    return False


class KafkaCluster:
    """Brokers 0..n-1, each a controller too, on ``host``, in one temporary folder; a context manager.

    ``settings``: added to the brokers' own and stronger than they are. ``port``: of the first broker's clients, its fellows'
    follow; any free ones without. ``within``: a command that runs another elsewhere and becomes it, as ``nsenter --net=...`` does; then
    ``host`` is an address there. Leaving kills what still runs and removes the folder; so does the death of this process.
    """

    def __init__(
        self,
        brokers: int = 1,
        security: Security | None = None,
        settings: Mapping[str, str] | None = None,
        jvm_flags: tuple[str, ...] = QUICK,
        port: int | None = None,
        host: str = "127.0.0.1",
        within: tuple[str, ...] = (),
    ) -> None:
        self.security = security
        self._host, self._within = host, within
        self.jvm_flags = jvm_flags
        self._own_settings = dict(settings or {})
        self._ports = [[free_port() if port is None else port + i, free_port(), free_port()] for i in range(brokers)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._log_starts: dict[int, int] = {}  # where the log of a broker's present life begins
        self._held = ExitStack()
        self._folder: Path | None = None

    # --- what clients need ------------------------------------------------------------------------------------------------
    @property
    def servers(self) -> list[str]:
        """host:port of each broker, for clients; TLS, login and permissions as ``security`` says."""
        return [f"{self._host}:{ports[0]}" for ports in self._ports]

    @property
    def internal_servers(self) -> list[str]:
        """host:port of each broker without TLS or login, and with every permission."""
        return [f"{self._host}:{ports[1]}" for ports in self._ports]

    @property
    def protocol(self) -> str:
        """How clients speak with ``servers``: PLAINTEXT, SSL or SASL_SSL."""
        return self.security.protocol if self.security else "PLAINTEXT"

    @property
    def folder(self) -> Path:
        assert self._folder is not None, "the cluster is not entered"
        return self._folder

    @property
    def ca_path(self) -> Path:
        """The authority that signed the brokers' certificates, PEM."""
        return self.folder / "ca.pem"

    @property
    def client_cert_path(self) -> Path:
        """A client's key and its certificate in one PEM file, of the same authority."""
        return self.folder / "client.pem"

    def login(self, user: str | None = None, mechanism: str = "SCRAM-SHA-512", password: str | None = None) -> dict[str, str]:
        """Settings, as librdkafka spells them, of a client of ``servers``. ``password``: another one than the user's."""
        options = {"security.protocol": self.protocol}
        if self.security:
            options["ssl.ca.location"] = str(self.ca_path)
        if self.security and self.security.require_client_cert:
            options |= {"ssl.certificate.location": str(self.client_cert_path), "ssl.key.location": str(self.client_cert_path)}
        if user is None:
            return options
        assert self.security is not None, "nobody logs in without security"
        if mechanism == "OAUTHBEARER":
            return options | {
                "sasl.mechanisms": mechanism,
                "enable.sasl.oauthbearer.unsecure.jwt": "true",
                "sasl.oauthbearer.config": f"principal={user}",
            }
        return options | {"sasl.mechanisms": mechanism, "sasl.username": user, "sasl.password": password or self.security.users[user]}

    # --- what tests look into ---------------------------------------------------------------------------------------------
    def pid(self, i: int) -> int:
        return self._processes[i].pid

    def is_running(self, i: int) -> bool:
        """True also of a paused one."""
        return i in self._processes and self._processes[i].poll() is None

    def log_text(self, i: int) -> str:
        """Everything that broker ``i`` has said since its formatting."""
        return self._log_path(i).read_text("utf-8", errors="replace")

    def data_dir(self, i: int) -> Path:
        """Holds one folder ``TOPIC-PARTITION`` of segment files for each partition that broker ``i`` has."""
        return self.folder / f"data-{i}"

    # --- their lives ------------------------------------------------------------------------------------------------------
    def __enter__(self) -> Self:
        try:
            self._folder = self._held.enter_context(own_folder("keystone-kafka-"))
            self._format()
            for i in range(len(self._ports)):
                self.start(i)
            for i in range(len(self._ports)):
                self.wait_ready(i)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs and remove the folder. Not in good order: the last brokers have no majority left and would wait for one."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._held.close()

    def start(self, i: int) -> None:
        """Start broker ``i``, which must not run, and do not wait for it."""
        assert not self.is_running(i), f"broker {i} runs already"
        self._log_starts[i] = self._log_path(i).stat().st_size
        self._processes[i] = self._java(i, BROKER, f"broker-{i}.properties")

    def wait_ready(self, i: int) -> None:
        """Until broker ``i`` takes requests. RuntimeError with its log when it ends instead, or takes far too long."""
        deadline = time.monotonic() + READY_S_MAX
        while READY not in (said := self._said(i)):
            if not self.is_running(i) or time.monotonic() > deadline:
                raise RuntimeError(f"broker {i} is not ready (exit status {self._processes[i].poll()}):\n{said[-4000:]}")
            time.sleep(0.02)

    def stop(self, i: int) -> None:
        """In good order: broker ``i`` hands over what it leads and writes everything down."""
        self._processes[i].terminate()
        self._processes[i].wait(STOP_S_MAX)

    def kill(self, i: int) -> None:
        """As a crash would (SIGKILL); a paused one too. What it wrote stays in the kernel's memory, as after any death of a process."""
        self._processes[i].kill()
        self._processes[i].wait()

    def pause(self, i: int) -> None:
        """It keeps its connections and answers nothing (SIGSTOP); all its threads stand still when this returns."""
        self._processes[i].send_signal(signal.SIGSTOP)
        while os.waitid(os.P_PID, self.pid(i), os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None and self.is_running(i):
            time.sleep(0.001)

    def resume(self, i: int) -> None:
        self._processes[i].send_signal(signal.SIGCONT)

    def restart(self, i: int) -> None:
        """Start broker ``i`` on what it had and wait for it; one that still runs is stopped first."""
        if self.is_running(i):
            self.stop(i)
        self.start(i)
        self.wait_ready(i)

    # --- how it is done ---------------------------------------------------------------------------------------------------
    def _log_path(self, i: int) -> Path:
        return self.folder / f"broker-{i}.log"

    def _said(self, i: int) -> str:
        """Since its last start."""
        return self._log_path(i).read_bytes()[self._log_starts[i] :].decode("utf-8", errors="replace")

    def _format(self) -> None:
        if self.security:
            write_certificates(self.folder)
        records = self.security.scram_records() if self.security else []
        shared = self._settings()
        for i, ports in enumerate(self._ports):
            addresses = [f"{name}://{self._host}:{port}" for name, port in zip(LISTENERS, ports, strict=True)]
            own = {"node.id": str(i), "log.dirs": str(self.data_dir(i)), "listeners": ",".join(addresses), "advertised.listeners": ",".join(addresses[:2])}
            lines = (f"{name}={value}\n" for name, value in {**own, **shared}.items())
            (self.folder / f"broker-{i}.properties").write_text("".join(lines))
            command = ("kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID, "--config", f"broker-{i}.properties", *records)
            self._processes[i] = self._java(i, *command)
        for i, process in self._processes.items():
            if process.wait(READY_S_MAX):
                raise RuntimeError(f"cannot format broker {i}:\n{self.log_text(i)[-4000:]}")

    def _settings(self) -> dict[str, str]:
        """What all brokers share. Everything is small, and what takes minutes in production takes less than a second."""
        copies, in_sync = str(min(3, len(self._ports))), str(min(2, len(self._ports)))
        return {
            "process.roles": "broker,controller",
            "controller.quorum.voters": ",".join(f"{i}@{self._host}:{ports[2]}" for i, ports in enumerate(self._ports)),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "INTERNAL",
            "listener.security.protocol.map": f"CLIENT:{self.protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "default.replication.factor": copies,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "transaction.state.log.num.partitions": "4",
            "auto.create.topics.enable": "false",  # a misspelled topic is an error
            "delete.topic.enable": "true",
            "message.max.bytes": str(RECORD_BYTES_MAX),
            "replica.fetch.max.bytes": str(RECORD_BYTES_MAX),
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            # A killed broker is missed after this long, and a lone one waits as long for its own old session. Two seconds is
            # what a busy machine still answers within; three where a false alarm moves leaders.
            "broker.session.timeout.ms": "2000" if len(self._ports) == 1 else "3000",
            "broker.heartbeat.interval.ms": "500",
            "log.initial.task.delay.ms": "500",
            "log.retention.check.interval.ms": "500",
            "log.segment.delete.delay.ms": "200",
            "log.cleaner.dedupe.buffer.size": "4194304",
            **(self.security.broker_settings(self.folder) if self.security else {}),
            **self._own_settings,
        }

    def _java(self, i: int, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        flags = (*self.jvm_flags, *self._archive_flags(program), LOG_LEVEL, "-cp", ":".join(map(str, jars())))
        return start_bound([*self._within, java(), *flags, program, *arguments], self.folder, self._log_path(i))

    def _archive_flags(self, program: str) -> tuple[str, ...]:
        """Load classes from the archive. Only with the flags that it was made with: measurements are of a Java as everybody's."""
        archive = class_archive(_write_class_archive) if self.jvm_flags == QUICK else None
        return (f"-XX:AOTCache={archive}", *ARCHIVE_FLAGS) if archive else ()


class _Teacher(KafkaCluster):
    """A broker from whose start the archive of classes is made."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def _archive_flags(self, program: str) -> tuple[str, ...]:
        return (f"-XX:AOTCacheOutput={self._path}", *ARCHIVE_FLAGS) if program == BROKER else ()


def _write_class_archive(path: Path) -> None:
    with _Teacher(path) as kafka:
        kafka.stop(0)  # Java writes it on its way out


def _end(number: int, frame: FrameType | None) -> None:
    """Once: tidying up is not to be interrupted in turn."""
    for ending in ENDINGS:
        signal.signal(ending, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run brokers until told to end. Status 0 then, 1 when a broker ended by itself."""
    parser = argparse.ArgumentParser(prog="python -m tests.kafka_server", description="Real Kafka brokers on 127.0.0.1, gone without a trace at the end.")
    parser.add_argument("--brokers", type=int, default=1, help="how many (default 1)")
    parser.add_argument("--port", type=int, help="of the first broker; the next brokers have the next ports (default: any free)")
    parser.add_argument("--throughput", action="store_true", help="more memory and the optimizing compiler: for measuring, starts slower")
    chosen = parser.parse_args()
    for ending in ENDINGS:
        signal.signal(ending, _end)
    try:
        with KafkaCluster(chosen.brokers, jvm_flags=THROUGHPUT if chosen.throughput else QUICK, port=chosen.port) as kafka:
            sys.stdout.write(f"kafka://{','.join(kafka.servers)}\n")
            sys.stdout.flush()
            while all(kafka.is_running(i) for i in range(chosen.brokers)):
                time.sleep(0.2)
            sys.stderr.write("a broker ended by itself\n")
            return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
