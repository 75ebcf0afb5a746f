"""Asking brokers that break: nobody waits longer than was said, and closing ends every wait."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from kafka.protocol.metadata import MetadataRequest

from keystone.config import KafkaConfig
from keystone.errors import LogClosed, LogUnreachable, UsageError
from keystone.log.kafka.client import EARLIEST, KafkaClient
from tests.kafka_fakes import Broker, gone, server, silent

pytestmark = pytest.mark.slow

SLACK_S = 2.0  # of a busy machine
WAIT_S_MAX = 20.0


def question() -> Any:
    return MetadataRequest(topics=[], allow_auto_topic_creation=False)


def connected(broker: Broker, **settings: Any) -> KafkaClient:
    client = KafkaClient([broker.address], KafkaConfig(**settings))
    client.connect()
    return client


@pytest.fixture(params=[gone, silent], ids=["hangs up", "is silent"])
def broken(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A broker that answers one request for metadata, and then breaks at each."""
    broker = Broker(well=1, behaves=request.param)
    with broker.listening():
        yield broker


def test_an_answer_is_waited_for_as_long_as_was_said(broken: Broker) -> None:
    with closing(connected(broken)) as client:
        began_s = time.monotonic()
        with pytest.raises(LogUnreachable, match=r"^127\.0\.0\.1:\d+: no answer within 0\.5 s: ") as raised:
            client.ask(question(), wait_s=0.5)
        assert time.monotonic() - began_s < 0.5 + SLACK_S
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("broken", [gone], indirect=True)
def test_a_question_is_repeated_while_connections_break(broken: Broker) -> None:
    with closing(connected(broken)) as client:
        answers: list[Any] = []
        asking = Asking(lambda: answers.append(client.ask(question(), wait_s=WAIT_S_MAX)))
        until(lambda: broken.asked.count(3) > 5)
        broken.well = 1 << 30
        assert asking.end() is None
        assert [len(answer.brokers) for answer in answers] == [1]


def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not claim():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


ASKING: list[Callable[[KafkaClient], Any]] = [
    lambda client: client.ask(question(), wait_s=60),
    lambda client: client.ask(question(), 0, wait_s=60),
    lambda client: client.topic("t", wait_s=60),
    lambda client: client.offsets("t", [0, 1], EARLIEST),
    lambda client: client.run(client.net.sleep, 60),
]


class Asking(threading.Thread):
    """Does something in a thread of its own; how that ended is ``error``."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self.work = work
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, a test judges it
            self.error = error

    def end(self) -> BaseException | None:
        self.join(WAIT_S_MAX)
        assert not self.is_alive()
        return self.error


@pytest.mark.parametrize("ask", ASKING, ids=["ask", "ask one", "topic", "offsets", "run"])
def test_closing_ends_every_wait(broken: Broker, ask: Callable[[KafkaClient], Any]) -> None:
    client = connected(broken)
    asking = Asking(lambda: ask(client))
    time.sleep(0.3)
    began_s = time.monotonic()
    client.close()
    assert isinstance(asking.end(), LogClosed)
    assert time.monotonic() - began_s < SLACK_S
    client.close()
    with pytest.raises(LogClosed):
        ask(client)


def ask_for_ever(client: KafkaClient) -> None:
    while True:
        client.ask(question())


def test_closing_under_many_who_ask_leaves_nobody_waiting() -> None:
    broker = Broker()
    with broker.listening():
        for _ in range(15):
            client = connected(broker)
            asking = [Asking(partial(ask_for_ever, client)) for _ in range(6)]
            closing_ = [Asking(client.close) for _ in range(2)]
            assert [type(one.end()) for one in asking] == [LogClosed] * 6
            assert [one.end() for one in closing_] == [None] * 2


def test_whoever_waits_on_the_thread_of_input_and_output_is_told() -> None:
    with Broker().listening() as place, closing(KafkaClient([place], KafkaConfig())) as client:

        async def wait() -> None:
            client.run(client.net.sleep, 1)

        with pytest.raises(RuntimeError, match="keeps the result from coming"):
            client.run(wait)


def test_closing_while_a_handshake_waits() -> None:
    with server(silent) as place:
        for settings in ({"security_protocol": "SSL"}, {}):
            client = KafkaClient([place], KafkaConfig(**settings))
            connecting = Asking(client.connect)
            time.sleep(0.3)
            client.close()
            assert isinstance(connecting.end(), (LogClosed, UsageError))


@pytest.mark.slow
def test_a_broker_that_fails_while_in_use_is_told_of_once_and_again_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "keystone.log.kafka")
    refuses = threading.Event()

    def login(_turn: int, _message: bytes) -> tuple[int, bytes]:
        return (58 if refuses.is_set() else 0), b""

    broker = Broker(mechanisms=("PLAIN",), login=login)
    with broker.listening() as place:
        config = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": "u", "sasl_password": "canary"}
        with closing(connected(broker, **config)) as client:
            refuses.set()
            hang_up(client)
            with pytest.raises(LogUnreachable, match=r"no answer within 2 s: .* refuses user 'u' or the password"):
                client.ask(question(), wait_s=2)
            logins = broker.asked.count(36)
            refuses.clear()
            client.ask(question(), wait_s=WAIT_S_MAX)
    assert logins < 20  # with pauses that grow
    told = [record.getMessage() for record in caplog.records if record.name == "keystone.log.kafka"]
    refusal = "SERVER: refuses user 'u' or the password (PLAIN): correct kafka.sasl_username, or KEYSTONE_KAFKA__SASL_PASSWORD"
    assert [re.sub(r"127\.0\.0\.1:\d+", "SERVER", line) for line in told] == [
        f"broker 0 cannot be used, which is tried on and on: {refusal}",
        "broker 0 is reached again at SERVER",
    ]
    assert place


def hang_up(client: KafkaClient) -> None:
    async def close() -> None:
        for manager in (client.control, client.fetching):
            for connection in list(manager._conns.values()):
                connection.close()

    client.run(close)


def test_a_server_that_knows_no_broker_yet() -> None:
    class Starting(Broker):
        def _metadata(self, version: int) -> Any:
            answer = super()._metadata(version)
            answer.brokers = []
            return answer

    told = pytest.raises(UsageError, match="answers, but knows no broker of its cluster yet: wait until it has started")
    with Starting().listening() as place, closing(KafkaClient([place], KafkaConfig())) as client, told:
        client.connect()


def test_a_broker_that_is_advertised_in_vain_beside_one_that_is_not(caplog: pytest.LogCaptureFixture) -> None:
    """Enough to begin with; the log tells of the other as soon as it is wanted."""

    class Two(Broker):
        def _metadata(self, version: int) -> Any:
            answer = super()._metadata(version)
            other = super()._metadata(version)
            other.brokers[0].node_id, other.brokers[0].port = 1, 1
            answer.brokers = [*other.brokers, *answer.brokers]
            return answer

    with Two().listening() as place, closing(KafkaClient([place], KafkaConfig())) as client:
        client.connect()
        client.ask(question())
        with pytest.raises(LogUnreachable, match=r"127\.0\.0\.1:1: nothing listens there"):
            client.ask(question(), 1, wait_s=0.5)
        assert "broker 1 cannot be used, which is tried on and on: 127.0.0.1:1: nothing listens there" in caplog.text
