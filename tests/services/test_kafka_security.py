"""TLS, logins and ACLs on real brokers: what is right works, and whatever is wrong is one line that says what to change."""

from __future__ import annotations

import base64
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trustme

from keystone.config import KafkaConfig
from keystone.errors import UsageError
from keystone.log.kafka import KafkaLog
from keystone.log.kafka.client import KafkaClient
from keystone.log.kafka.topics import TopicPlan, check, create
from keystone.log.url import KafkaUrl
from tests.kafka_fixtures import PASSWORDS
from tests.kafka_server import KafkaCluster, Security
from tests.rdkafka import create_topic

TOLD_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def topic(secure_kafka: KafkaCluster) -> str:
    create_topic(secure_kafka.internal_servers, "secured", partitions=2)
    return "secured"


@pytest.fixture(scope="module")
def mutual_kafka() -> Iterator[KafkaCluster]:
    """TLS with certificates on both sides, and tokens that nobody signed."""
    with KafkaCluster(security=Security(require_client_cert=True)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def token_kafka() -> Iterator[KafkaCluster]:
    with KafkaCluster(security=Security(oauthbearer=True)) as cluster:
        yield cluster


def url_of(cluster: KafkaCluster, topic: str, *, servers: list[str] | None = None) -> KafkaUrl:
    return KafkaUrl(tuple(servers or cluster.servers), topic)


def settings(cluster: KafkaCluster, user: str = "alice", **more: Any) -> KafkaConfig:
    chosen: dict[str, Any] = {
        "security_protocol": "SASL_SSL", "tls_ca_file": str(cluster.ca_path), "sasl_username": user, "sasl_password": PASSWORDS.get(user, "x"),
    }  # fmt: skip
    chosen |= more
    return KafkaConfig(**{name: value for name, value in chosen.items() if value is not None})


def round_trip(url: KafkaUrl, config: KafkaConfig) -> None:
    with closing(KafkaLog.open(url, config, action="write")) as log:
        offset = log.writer(0).append(b"secured").offset
        reader = log.reader(0)
        reader.seek(offset)
        records = reader.poll(bytes_max=1, wait_ms=10_000)
        assert records.text[records.starts[0] : records.ends[0]].tobytes() == b"secured"


def refusal(url: KafkaUrl, config: KafkaConfig, action: str = "read") -> str:
    """The one line that opening the log gives, in time, without a secret."""
    began_s = time.monotonic()
    with pytest.raises(UsageError) as raised:
        KafkaLog.open(url, config, action=action).close()
    assert time.monotonic() - began_s < TOLD_WITHIN_S
    line = str(raised.value)
    assert "\n" not in line
    assert not re.search("|".join([*PASSWORDS.values(), "wrong-secret"]), line)
    return line


# --- what is right ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_login_over_tls(secure_kafka: KafkaCluster, topic: str, mechanism: str) -> None:
    round_trip(url_of(secure_kafka, topic), settings(secure_kafka, sasl_mechanism=mechanism))


def test_a_password_file(secure_kafka: KafkaCluster, topic: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(PASSWORDS["alice"] + "\n")
    round_trip(url_of(secure_kafka, topic), settings(secure_kafka, sasl_password=None, sasl_password_file=str(tmp_path / "secret")))


def test_a_client_certificate(mutual_kafka: KafkaCluster) -> None:
    create_topic(mutual_kafka.internal_servers, "mutual")
    config = KafkaConfig(
        security_protocol="SSL", tls_ca_file=str(mutual_kafka.ca_path), tls_cert_file=str(mutual_kafka.client_cert_path)
    )  # fmt: skip
    round_trip(url_of(mutual_kafka, "mutual"), config)


def token(subject: str = "device-team", seconds: float = 300) -> str:
    """One that nobody signed, as the brokers of the tests take it."""
    now = int(time.time())
    parts = ({"alg": "none"}, {"sub": subject, "iat": now, "exp": now + seconds})
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


def token_settings(cluster: KafkaCluster, program: str) -> KafkaConfig:
    return KafkaConfig(
        security_protocol="SASL_SSL", tls_ca_file=str(cluster.ca_path), sasl_mechanism="OAUTHBEARER", oauth_token_command=(sys.executable, "-c", program)
    )  # fmt: skip


def test_a_token_by_a_command(token_kafka: KafkaCluster) -> None:
    create_topic(token_kafka.internal_servers, "tokens")
    round_trip(url_of(token_kafka, "tokens"), token_settings(token_kafka, f"print({token()!r})"))
    as_json = json.dumps({"token": token(), "expires_in_s": 60})
    round_trip(url_of(token_kafka, "tokens"), token_settings(token_kafka, f"print({as_json!r})"))


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import sys; print('tok-canary'); sys.exit(3)", "failed"),
        ("print('two tok-canary words')", "printed no token"),
        ("print('')", "printed no token"),
        ("print('tok-canary')", "refuses the token"),
    ],
)
def test_a_token_command_that_gives_none(token_kafka: KafkaCluster, program: str, says: str) -> None:
    line = refusal(url_of(token_kafka, "tokens"), token_settings(token_kafka, program))
    assert says in line
    assert "oauth_token_command" in line
    assert "canary" not in line


# --- what is wrong ----------------------------------------------------------------------------------------------------
def test_a_wrong_password(secure_kafka: KafkaCluster, topic: str) -> None:
    line = refusal(url_of(secure_kafka, topic), settings(secure_kafka, sasl_password="wrong-secret"))
    assert "refuses user 'alice' or the password" in line
    assert "KEYSTONE_KAFKA__SASL_PASSWORD" in line


def test_an_unknown_user(secure_kafka: KafkaCluster, topic: str) -> None:
    assert "refuses user 'mallory'" in refusal(url_of(secure_kafka, topic), settings(secure_kafka, user="mallory", sasl_mechanism="PLAIN"))


def test_a_wrong_authority(secure_kafka: KafkaCluster, topic: str, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    line = refusal(url_of(secure_kafka, topic), settings(secure_kafka, tls_ca_file=str(tmp_path / "other.pem")))
    assert f"kafka.tls_ca_file = {tmp_path / 'other.pem'}" in line
    assert "kafka.tls_ca_file" in refusal(url_of(secure_kafka, topic), settings(secure_kafka, tls_ca_file=None))


def test_a_mechanism_that_is_not_offered(secure_kafka: KafkaCluster, topic: str, token_kafka: KafkaCluster) -> None:
    line = refusal(url_of(token_kafka, "tokens"), settings(token_kafka, sasl_mechanism="PLAIN"))
    assert "does not offer kafka.sasl_mechanism = PLAIN" in line
    assert "OAUTHBEARER" in line


def test_a_certificate_that_is_wanted_and_missing(mutual_kafka: KafkaCluster) -> None:
    line = refusal(url_of(mutual_kafka, "mutual"), KafkaConfig(security_protocol="SSL", tls_ca_file=str(mutual_kafka.ca_path)))
    assert "kafka.tls_cert_file" in line


def test_plaintext_spoken_to_a_tls_port(secure_kafka: KafkaCluster, topic: str) -> None:
    assert "kafka.security_protocol" in refusal(url_of(secure_kafka, topic), KafkaConfig())


def test_tls_spoken_to_a_plaintext_port(secure_kafka: KafkaCluster, topic: str) -> None:
    line = refusal(url_of(secure_kafka, topic, servers=secure_kafka.internal_servers), settings(secure_kafka))
    assert "TLS" in line
    assert "kafka.security_protocol" in line


def test_a_login_where_none_is_asked_for(mutual_kafka: KafkaCluster) -> None:
    config = settings(mutual_kafka, tls_cert_file=str(mutual_kafka.client_cert_path))
    assert "kafka.security_protocol = SSL" in refusal(url_of(mutual_kafka, "mutual"), config)


def test_no_login_where_one_is_asked_for(secure_kafka: KafkaCluster, topic: str) -> None:
    line = refusal(url_of(secure_kafka, topic), KafkaConfig(security_protocol="SSL", tls_ca_file=str(secure_kafka.ca_path)))
    assert "SASL_SSL" in line


def test_a_topic_that_may_not_be_seen(secure_kafka: KafkaCluster, topic: str) -> None:
    for action in ("read", "write"):
        line = refusal(url_of(secure_kafka, topic), settings(secure_kafka, user="bob"), action)
        assert "user 'bob' may not see topic 'secured'" in line
        assert "ACL" in line


@pytest.mark.parametrize(("granted", "refused"), [("READ", "write"), ("WRITE", "read")])
def test_a_topic_of_which_one_thing_is_allowed(secure_kafka: KafkaCluster, topic_name: str, granted: str, refused: str) -> None:
    create_topic(secure_kafka.internal_servers, topic_name)
    allow(secure_kafka, "bob", granted, topic_name)
    allowed = "read" if granted == "READ" else "write"
    KafkaLog.open(url_of(secure_kafka, topic_name), settings(secure_kafka, user="bob"), action=allowed).close()
    assert f"may not {refused} topic {topic_name!r}" in refusal(url_of(secure_kafka, topic_name), settings(secure_kafka, user="bob"), refused)


def allow(cluster: KafkaCluster, user: str, operation: str, topic: str) -> None:
    from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, AdminClient, ResourcePatternType, ResourceType

    admin = AdminClient({"bootstrap.servers": ",".join(cluster.internal_servers)})
    binding = AclBinding(
        ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, f"User:{user}", "*", AclOperation[operation], AclPermissionType.ALLOW
    )  # fmt: skip
    for future in admin.create_acls([binding]).values():
        future.result(10)
    time.sleep(0.3)  # until the broker has it


def test_a_topic_that_is_missing(secure_kafka: KafkaCluster) -> None:
    line = refusal(url_of(secure_kafka, "nowhere"), settings(secure_kafka))
    assert "topic 'nowhere' is not at" in line
    assert "keystone topics create" in line


def test_making_topics_without_the_right(secure_kafka: KafkaCluster, topic_name: str) -> None:
    client = KafkaClient(secure_kafka.servers, settings(secure_kafka, user="bob"))
    client.connect()
    with closing(client), pytest.raises(UsageError, match=r"user 'bob' may not (see|create) topic"):
        create(client, TopicPlan(topic_name, 1, 1, 3_600_000))


def test_a_check_without_the_right_to_see_settings_says_so(secure_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(secure_kafka.internal_servers, topic_name)
    allow(secure_kafka, "bob", "READ", topic_name)
    client = KafkaClient(secure_kafka.servers, settings(secure_kafka, user="bob"))
    client.connect()
    with closing(client):
        [finding] = check(client, TopicPlan(topic_name, 0, 0, -1), is_telemetry=True)
    assert "DESCRIBE_CONFIGS" in finding.text
    assert not finding.hurts


@pytest.mark.parametrize("advertised", ["no-such-host.invalid:9092", "127.0.0.1:1"])
def test_an_address_that_brokers_advertise_in_vain(kafka_cluster: Any, advertised: str) -> None:
    cluster = kafka_cluster(settings={"advertised.listeners": f"CLIENT://{advertised},INTERNAL://{advertised}"})
    config = KafkaConfig(allow_plaintext=True)
    line = refusal(url_of(cluster, "any"), config)
    assert "advertised.listeners" in line
    assert advertised in line


def test_a_password_that_is_corrected_at_the_broker_is_used_by_a_running_client(secure_kafka: KafkaCluster, topic: str, tmp_path: Path) -> None:
    """A connection that is lost meanwhile logs in with what the file holds now."""
    secret = tmp_path / "secret"
    secret.write_text(PASSWORDS["alice"])
    config = settings(secure_kafka, sasl_password=None, sasl_password_file=str(secret))
    with closing(KafkaLog.open(url_of(secure_kafka, topic), config, action="write")) as log:
        writer = log.writer(0)
        writer.append(b"before")
        secret.write_text("wrong-secret")
        hang_up(log)
        writer.send(b"meanwhile")
        assert not writer.flush(wait_s=2)
        secret.write_text(PASSWORDS["alice"])
        assert writer.flush(wait_s=20)
        assert writer.sent.acknowledged == 2


def hang_up(log: KafkaLog) -> None:
    async def close() -> None:
        for connection in list(log.client.control._conns.values()):
            connection.close()

    log.client.run(close)
