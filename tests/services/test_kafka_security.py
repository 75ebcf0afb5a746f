"""TLS, logins and ACLs on real brokers: what is right works, and whatever is wrong is one line that says what to change."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trustme

from keystone.config import KafkaConfig
from keystone.errors import LogUnreachable, UsageError
from keystone.log.kafka import KafkaLog
from keystone.log.kafka.client import KafkaClient
from keystone.log.kafka.topics import TopicPlan, check, create
from keystone.log.url import KafkaUrl
from tests.kafka_fixtures import PASSWORDS
from tests.kafka_server import KafkaCluster, Security
from tests.rdkafka import allow_everything, create_topic

TOLD_WITHIN_S = 10.0
WAIT_S_MAX = 30.0
SECRETS = re.compile("|".join([*PASSWORDS.values(), "wrong-secret", "canary"]))


@pytest.fixture(scope="module")
def topic(secure_kafka: KafkaCluster) -> str:
    create_topic(secure_kafka.internal_servers, "secured", partitions=2)
    return "secured"


@pytest.fixture(scope="module")
def mutual_kafka() -> Iterator[KafkaCluster]:
    """TLS with certificates on both sides."""
    with KafkaCluster(security=Security(require_client_cert=True)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def token_kafka() -> Iterator[KafkaCluster]:
    """Tokens that nobody signed; a session lasts as long as the token says (KIP-368), at most a minute."""
    with KafkaCluster(security=Security(oauthbearer=True), settings={"connections.max.reauth.ms": "60000"}) as cluster:
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
    assert not SECRETS.search("".join(traceback.format_exception(raised.value)))
    return line.replace(",".join(url.servers), "SERVER")


# --- what is right ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_login_over_tls(secure_kafka: KafkaCluster, topic: str, mechanism: str) -> None:
    round_trip(url_of(secure_kafka, topic), settings(secure_kafka, sasl_mechanism=mechanism))


def test_a_password_file(secure_kafka: KafkaCluster, topic: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(PASSWORDS["alice"] + "\n")
    round_trip(url_of(secure_kafka, topic), settings(secure_kafka, sasl_password=None, sasl_password_file=str(tmp_path / "secret")))


@pytest.mark.slow
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


@pytest.mark.slow
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
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password(secure_kafka: KafkaCluster, topic: str, tmp_path: Path, mechanism: str) -> None:
    url = url_of(secure_kafka, topic)
    wrong = f"SERVER: refuses user 'alice' or the password ({mechanism}): correct kafka.sasl_username, or "
    for action in ("read", "write"):
        assert refusal(url, settings(secure_kafka, sasl_password="wrong-secret", sasl_mechanism=mechanism), action) == f"{wrong}KEYSTONE_KAFKA__SASL_PASSWORD"
    (tmp_path / "secret").write_text("wrong-secret")
    by_file = settings(secure_kafka, sasl_password=None, sasl_password_file=str(tmp_path / "secret"), sasl_mechanism=mechanism)
    assert refusal(url, by_file) == f"{wrong}the password in kafka.sasl_password_file = {tmp_path / 'secret'}"


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_an_unknown_user(secure_kafka: KafkaCluster, topic: str, mechanism: str) -> None:
    line = refusal(url_of(secure_kafka, topic), settings(secure_kafka, user="mallory", sasl_mechanism=mechanism))
    assert line.startswith(f"SERVER: refuses user 'mallory' or the password ({mechanism}): correct kafka.sasl_username")


def test_a_wrong_authority(secure_kafka: KafkaCluster, topic: str, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    assert refusal(url_of(secure_kafka, topic), settings(secure_kafka, tls_ca_file=str(tmp_path / "other.pem"))) == (
        f"SERVER: its certificate is not of an authority in kafka.tls_ca_file = {tmp_path / 'other.pem'} (unable to get local issuer certificate):"
        " name the CA file of these brokers"
    )
    assert "name the CA file of these brokers by kafka.tls_ca_file" in refusal(url_of(secure_kafka, topic), settings(secure_kafka, tls_ca_file=None))


def test_a_mechanism_that_is_not_offered(secure_kafka: KafkaCluster, topic: str, token_kafka: KafkaCluster) -> None:
    assert refusal(url_of(token_kafka, "tokens"), settings(token_kafka, sasl_mechanism="PLAIN")) == (
        "SERVER: does not offer kafka.sasl_mechanism = PLAIN: set it to one of what it offers: OAUTHBEARER"
    )
    line = refusal(url_of(secure_kafka, topic), token_settings(secure_kafka, "print('canary')"))
    assert line.startswith("SERVER: does not offer kafka.sasl_mechanism = OAUTHBEARER: set it to one of what it offers: ")
    assert sorted(line.rpartition(": ")[2].split(", ")) == ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


def test_a_certificate_that_is_missing_or_of_another_authority(mutual_kafka: KafkaCluster, tmp_path: Path) -> None:
    tls = {"security_protocol": "SSL", "tls_ca_file": str(mutual_kafka.ca_path)}
    wants = r"SERVER: wants a certificate of this client \([A-Z0-9_]+\): set kafka\.tls_cert_file and kafka\.tls_key_file"
    assert re.fullmatch(wants, refusal(url_of(mutual_kafka, "mutual"), KafkaConfig(**tls)))
    assert re.fullmatch(wants, refusal(url_of(mutual_kafka, "mutual"), settings(mutual_kafka)))
    trustme.CA().issue_cert("client.test").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "other.pem"))
    line = refusal(url_of(mutual_kafka, "mutual"), KafkaConfig(**tls, tls_cert_file=str(tmp_path / "other.pem")))
    assert re.fullmatch(rf"SERVER: refuses the certificate of kafka\.tls_cert_file = {tmp_path}/other\.pem \([A-Z0-9_]+\): use one that .*", line)


def test_plaintext_spoken_to_a_tls_port(secure_kafka: KafkaCluster, topic: str) -> None:
    told = "SERVER: speaks TLS on this port: set kafka.security_protocol = {}, or name the port without TLS"
    assert refusal(url_of(secure_kafka, topic), KafkaConfig()) == told.format("SSL or SASL_SSL")
    login = settings(secure_kafka, security_protocol="SASL_PLAINTEXT", tls_ca_file=None)
    assert refusal(url_of(secure_kafka, topic), login) == told.format("SASL_SSL")


def test_tls_spoken_to_a_plaintext_port(secure_kafka: KafkaCluster, topic: str) -> None:
    told = "SERVER: hangs up during the TLS handshake, as ports without TLS do: name the broker's TLS port, or set kafka.security_protocol = {} for this one"
    url = url_of(secure_kafka, topic, servers=secure_kafka.internal_servers)
    assert refusal(url, settings(secure_kafka)) == told.format("SASL_PLAINTEXT")
    assert refusal(url, KafkaConfig(security_protocol="SSL")) == told.format("PLAINTEXT")


def test_a_login_where_none_is_asked_for(mutual_kafka: KafkaCluster) -> None:
    told = "SERVER: asks for no login on this port: set kafka.security_protocol = {}, or name the port that asks for one"
    config = settings(mutual_kafka, tls_cert_file=str(mutual_kafka.client_cert_path))
    assert refusal(url_of(mutual_kafka, "mutual"), config) == told.format("SSL")
    plain = settings(mutual_kafka, security_protocol="SASL_PLAINTEXT", tls_ca_file=None)
    assert refusal(url_of(mutual_kafka, "mutual", servers=mutual_kafka.internal_servers), plain) == told.format("PLAINTEXT")


def test_no_login_where_one_is_asked_for(secure_kafka: KafkaCluster, topic: str) -> None:
    assert refusal(url_of(secure_kafka, topic), KafkaConfig(security_protocol="SSL", tls_ca_file=str(secure_kafka.ca_path))) == (
        "SERVER: hangs up at the first request, as ports with a login do: set kafka.security_protocol = SASL_SSL, or name the port without a login"
    )


def test_a_controller_is_no_broker(secure_kafka: KafkaCluster) -> None:
    controller = secure_kafka._ports[0][2]
    assert refusal(url_of(secure_kafka, "any", servers=[f"127.0.0.1:{controller}"]), KafkaConfig()) == (
        "SERVER: takes no Produce requests, as controllers do not: name a broker's address, not a controller's"
    )


def test_a_topic_that_may_not_be_seen(secure_kafka: KafkaCluster, topic: str) -> None:
    for action in ("read", "write"):
        line = refusal(url_of(secure_kafka, topic), settings(secure_kafka, user="bob"), action)
        assert line == ("user 'bob' may not see topic 'secured', if there is one: allow by ACL: DESCRIBE on the topic, and READ to run or WRITE to simulate")


@pytest.mark.parametrize(("granted", "refused"), [("READ", "write"), ("WRITE", "read")])
def test_a_topic_of_which_one_thing_is_allowed(secure_kafka: KafkaCluster, topic_name: str, granted: str, refused: str) -> None:
    create_topic(secure_kafka.internal_servers, topic_name)
    allow(secure_kafka, "bob", granted, topic_name)
    allowed = "read" if granted == "READ" else "write"
    KafkaLog.open(url_of(secure_kafka, topic_name), settings(secure_kafka, user="bob"), action=allowed).close()
    wanted = "WRITE" if granted == "READ" else "READ"
    line = refusal(url_of(secure_kafka, topic_name), settings(secure_kafka, user="bob"), refused)
    assert line == f"user 'bob' may not {refused} topic {topic_name!r}: allow by ACL: {wanted} and DESCRIBE on the topic"


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
    assert line == "topic 'nowhere' is not at SERVER: make it by: keystone topics create --log kafka://SERVER/nowhere"


def test_making_topics_without_the_right(secure_kafka: KafkaCluster, topic_name: str) -> None:
    client = KafkaClient(secure_kafka.servers, settings(secure_kafka, user="bob"))
    client.connect()
    with closing(client):
        with pytest.raises(UsageError, match=f"^user 'bob' may not see topic '{topic_name}', if there is one: allow by ACL: DESCRIBE on the topic, and READ "):
            create(client, TopicPlan(topic_name, 1, 1, 3_600_000))
        allow(secure_kafka, "bob", "DESCRIBE", topic_name)
        with pytest.raises(UsageError, match=f"^user 'bob' may not create topic '{topic_name}': allow by ACL: CREATE on the topic, or on the cluster$"):
            create(client, TopicPlan(topic_name, 1, 1, 3_600_000))
        allow(secure_kafka, "bob", "CREATE", topic_name)
        assert (create(client, TopicPlan(topic_name, 1, 1, 3_600_000)) or "").startswith(f"{topic_name}: made")


def test_a_check_without_the_right_to_see_settings_says_so(secure_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(secure_kafka.internal_servers, topic_name)
    allow(secure_kafka, "bob", "READ", topic_name)
    client = KafkaClient(secure_kafka.servers, settings(secure_kafka, user="bob"))
    client.connect()
    with closing(client):
        [finding] = check(client, TopicPlan(topic_name, 0, 0, -1), is_telemetry=True)
        assert finding.text == "its settings may not be seen (DESCRIBE_CONFIGS on the topic): nothing more can be checked"
        assert not finding.hurts
        with pytest.raises(UsageError, match=r"^user 'bob' may not see topic 'unseen', if there is one"):
            list(check(client, TopicPlan("unseen", 0, 0, -1), is_telemetry=True))


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
        for manager in (log.client.control, log.client.fetching):
            for connection in list(manager._conns.values()):
                connection.close()

    log.client.run(close)


def set_password(cluster: KafkaCluster, user: str, password: str) -> None:
    from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

    admin = AdminClient({"bootstrap.servers": ",".join(cluster.internal_servers)})
    change = UserScramCredentialUpsertion(user, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), password.encode())
    for future in admin.alter_user_scram_credentials([change]).values():
        future.result(10)
    time.sleep(0.3)  # until the broker has it


def test_a_password_that_the_broker_changes_and_changes_back(secure_kafka: KafkaCluster, topic: str) -> None:
    """Neither reading nor writing is dead for good."""
    allow_everything(secure_kafka.internal_servers, "carol")
    set_password(secure_kafka, "carol", "carol-secret")
    with closing(KafkaLog.open(url_of(secure_kafka, topic), settings(secure_kafka, user="carol", sasl_password="carol-secret"), action="write")) as log:
        writer, reader = log.writer(1), log.reader(1)
        reader.seek(writer.append(b"before").offset + 1)
        set_password(secure_kafka, "carol", "another-secret")
        hang_up(log)
        writer.send(b"meanwhile")
        assert not writer.flush(wait_s=2)
        with pytest.raises(LogUnreachable, match="refuses user 'carol' or the password"):
            log.client.topic(topic, wait_s=1)
        set_password(secure_kafka, "carol", "carol-secret")
        assert writer.flush(wait_s=WAIT_S_MAX)
        records = reader.poll(bytes_max=1, wait_ms=int(WAIT_S_MAX * 1_000))
        assert records.text[records.starts[0] : records.ends[0]].tobytes() == b"meanwhile"


@pytest.mark.slow
def test_tokens_that_expire_are_renewed_under_a_running_client(token_kafka: KafkaCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By logging in again on the same connections; and where the command fails for a while, later."""
    create_topic(token_kafka.internal_servers, "expiring")
    life_s = 3
    program = f"""if 1:
        import base64, json, os, sys, time
        open({str(tmp_path / "runs")!r}, "a").write("x")
        if os.path.exists({str(tmp_path / "broken")!r}):
            sys.exit("canary")
        now = time.time()
        parts = ({{"alg": "none"}}, {{"sub": "device-team", "iat": now, "exp": now + {life_s}}})
        print(".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + ".")
    """
    caplog.set_level("INFO", "keystone.log.kafka")
    with closing(KafkaLog.open(url_of(token_kafka, "expiring"), token_settings(token_kafka, program), action="write")) as log:
        writer, reader = log.writer(0), log.reader(0)
        began = set(log.client.control._conns.values())
        for _ in range(20):
            writer.append(b"x")
            time.sleep(life_s / 10)
        assert set(log.client.control._conns.values()) <= began  # no connection was lost
        assert len((tmp_path / "runs").read_text()) >= 2
        assert "cannot be used" not in caplog.text
        (tmp_path / "broken").touch()
        until(lambda: "kafka.oauth_token_command" in caplog.text)
        writer.send(b"meanwhile")
        (tmp_path / "broken").unlink()
        assert writer.flush(wait_s=WAIT_S_MAX)
        assert writer.sent.acknowledged == 21
        read = [0]

        def has_read_all() -> bool:
            read[0] += len(reader.poll(bytes_max=1 << 20, wait_ms=100).starts)
            return read[0] >= 21

        until(has_read_all)
    assert "canary" not in caplog.text


def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not claim():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


# --- where secrets must not be -------------------------------------------------------------------------------------------
def test_no_logger_writes_a_secret(secure_kafka: KafkaCluster, token_kafka: KafkaCluster, topic: str) -> None:
    """At any level, with tracebacks, whether a login succeeds or fails; kafka-python writes requests as they are."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    loggers = (logging.root, logging.getLogger("kafka"), logging.getLogger("keystone"))
    before = [logger.level for logger in loggers]
    logging.root.addHandler(handler)
    try:
        for logger in loggers:
            logger.setLevel(1)
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
            KafkaLog.open(url_of(secure_kafka, topic), settings(secure_kafka, sasl_mechanism=mechanism), action="read").close()
            refusal(url_of(secure_kafka, topic), settings(secure_kafka, sasl_password="wrong-secret", sasl_mechanism=mechanism))
        signed_by_nobody = token()
        KafkaLog.open(url_of(token_kafka, "tokens"), token_settings(token_kafka, f"print({signed_by_nobody!r})"), action="read").close()
        refusal(url_of(token_kafka, "tokens"), token_settings(token_kafka, "print('canary')"))
    finally:
        logging.root.removeHandler(handler)
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
    logged = text.getvalue()
    assert logged.count("SaslAuthenticateRequest") > 10
    assert not SECRETS.search(logged)
    assert signed_by_nobody.split(".")[1] not in logged
    assert not re.search(r",p=|r=[0-9a-f]{32}", logged)  # what SCRAM proves its knowledge by


@pytest.mark.parametrize("command", [["run", "--actions", "none"], ["simulate", "--seconds", "1"], ["topics", "check"], ["topics", "create"]])
def test_commands_end_with_one_line_and_status_2(secure_kafka: KafkaCluster, topic: str, command: list[str]) -> None:
    """The password by the environment, as services give it."""
    env = os.environ | {"KEYSTONE_KAFKA__SASL_PASSWORD": "wrong-secret"}
    given = {"security_protocol": "SASL_SSL", "tls_ca_file": secure_kafka.ca_path, "sasl_username": "alice"}
    flags = [word for name, value in given.items() for word in ("--set", f"kafka.{name}={value}")]
    place = secure_kafka.servers[0]
    words = [sys.executable, "-m", "keystone", *command, "--log", f"kafka://{place}/{topic}", *flags]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        f"keystone: {place}: refuses user 'alice' or the password (SCRAM-SHA-512): correct kafka.sasl_username, or KEYSTONE_KAFKA__SASL_PASSWORD\n"
    )
    assert done.stdout == ""
