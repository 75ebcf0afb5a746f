"""``keystone topics`` and ``keystone doctor`` against real brokers: what they make, what they find, and the exit status."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from keystone.cli import main
from keystone.run import doctor
from keystone.run.doctor import Check
from tests.kafka_server import KafkaCluster, free_port
from tests.rdkafka import create_topic
from tests.services.runs import APPEND_TIME, Topics, settings

Tell = Callable[..., tuple[int, list[str], str]]


@pytest.fixture(scope="module")
def three_brokers() -> Iterator[KafkaCluster]:
    with KafkaCluster(brokers=3) as cluster:
        yield cluster


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tell:
    """Exit status, lines and errors of a command."""
    monkeypatch.chdir(tmp_path)

    def told(*words: str) -> tuple[int, list[str], str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out.splitlines(), err

    return told


def settings_of(kafka: KafkaCluster, topic: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = AdminClient({"bootstrap.servers": ",".join(kafka.servers)})
    return {name: entry.value for name, entry in admin.describe_configs([resource])[resource].result(30).items()}


def change(kafka: KafkaCluster, topic: str, changes: Mapping[str, str]) -> None:
    entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in changes.items()]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    admin = AdminClient({"bootstrap.servers": ",".join(kafka.servers)})
    admin.incremental_alter_configs([resource])[resource].result(30)


def layout_of(kafka: KafkaCluster, topic: str) -> tuple[int, set[int]]:
    """Partitions, and how many replicas they have."""
    admin = AdminClient({"bootstrap.servers": ",".join(kafka.servers)})
    found = admin.list_topics(topic, timeout=30).topics[topic].partitions
    return len(found), {len(partition.replicas) for partition in found.values()}


# --- topics create ----------------------------------------------------------------------------------------------------
@pytest.mark.kafka
def test_three_topics_are_made_as_asked_and_found_right(kafka: KafkaCluster, topic_name: str, tell: Tell) -> None:
    topics = Topics(kafka.servers, topic_name, 6)
    names = settings(topics.names)
    status, lines, _ = tell("topics", "create", "--log", topics.url, "--partitions", "6", "--retention", "12h", "--retention-bytes", "8000000", *names)
    assert status == 0
    assert [line.partition(":")[0] for line in lines] == [topics.name, topics.actions, topics.dead_letters]
    assert all("made" in line and "LogAppendTime" in line for line in lines)
    kept = {topics.name: (12 * 3_600_000, 8_000_000), topics.actions: (7 * 86_400_000, -1), topics.dead_letters: (7 * 86_400_000, -1)}
    for topic, partitions in ((topics.name, 6), (topics.actions, 4), (topics.dead_letters, 4)):
        assert layout_of(kafka, topic) == (partitions, {1})
        found = settings_of(kafka, topic)
        assert (int(found["retention.ms"]), int(found["retention.bytes"])) == kept[topic]
        assert found["message.timestamp.type"] == "LogAppendTime"
        assert (found["cleanup.policy"], found["compression.type"], found["unclean.leader.election.enable"]) == ("delete", "producer", "false")
        assert int(found["max.message.bytes"]) == 8 << 20
        assert found["min.insync.replicas"] == "1"
    assert int(settings_of(kafka, topics.name)["segment.bytes"]) <= 8_000_000 // 4
    status, lines, _ = tell("topics", "check", "--log", topics.url, "--partitions", "6", *names)
    assert (status, lines[-1]) == (0, "nothing hurts")
    assert [line[:5] for line in lines[:-1]] == ["note "] * 3, "a lone broker has one replica"


@pytest.mark.kafka
def test_topics_that_are_there_stay_as_they_are(kafka: KafkaCluster, topic_name: str, tell: Tell) -> None:
    topics = Topics(kafka.servers, topic_name, 2)
    create_topic(kafka.servers, topics.name, 2)
    before = settings_of(kafka, topics.name)
    for expected in ("made", "is there already"):
        status, lines, _ = tell("topics", "create", "--log", topics.url, "--partitions", "7", *settings(topics.names))
        assert status == 0
        assert "is there already" in lines[0]
        assert all(expected in line for line in lines[1:])
    assert layout_of(kafka, topics.name) == (2, {1})
    assert settings_of(kafka, topics.name) == before


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--replication", "3"), "lower --replication"),
        (("--retention", "soon"), "such as 12h"),
        (("--set", "kafka.actions_topic=spaces are wrong"), "'spaces are wrong'"),
    ],
)
def test_what_brokers_refuse_is_one_line(kafka: KafkaCluster, topic_name: str, tell: Tell, words: tuple[str, ...], told: str) -> None:
    status, _, error = tell("topics", "create", "--log", f"kafka://{kafka.servers[0]}/{topic_name}", *words)
    assert status == 2
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.kafka
def test_a_small_retention_makes_segments_as_small_as_brokers_take(kafka: KafkaCluster, topic_name: str, tell: Tell) -> None:
    topics = Topics(kafka.servers, topic_name, 1)
    status, _, error = tell("topics", "create", "--log", topics.url, "--partitions", "1", "--retention-bytes", "100000", *settings(topics.names))
    assert status == 0, error
    found = settings_of(kafka, topics.name)
    assert (int(found["retention.bytes"]), int(found["segment.bytes"])) == (100_000, 1 << 20)


def test_only_kafka_has_topics_and_only_where_a_broker_listens(tell: Tell, tmp_path: Path) -> None:
    for command in ("create", "check"):
        status, _, error = tell("topics", command, "--log", f"embedded:{tmp_path}")
        assert (status, error.count("\n")) == (2, 1)
        status, _, error = tell("topics", command, "--log", f"kafka://127.0.0.1:{free_port()}")
        assert (status, error.count("\n")) == (2, 1)
        assert "nothing listens there" in error


# --- topics check -----------------------------------------------------------------------------------------------------
@pytest.mark.kafka
def test_a_cluster_of_three_keeps_three_copies_and_less_hurts(three_brokers: KafkaCluster, topic_name: str, tell: Tell) -> None:
    topics = Topics(three_brokers.servers, topic_name, 3)
    checked = ("topics", "check", "--log", topics.url, *settings(topics.names))
    status, _, _ = tell("topics", "create", "--log", topics.url, "--partitions", "3", *settings(topics.names))
    assert status == 0
    assert [layout_of(three_brokers, topic) for topic in (topics.name, topics.actions, topics.dead_letters)] == [(3, {3})] * 3
    assert {settings_of(three_brokers, topic)["min.insync.replicas"] for topic in (topics.name, topics.actions, topics.dead_letters)} == {"2"}
    assert tell(*checked) == (0, ["nothing hurts"], "")
    hurting = {"min.insync.replicas": "1"}, {"min.insync.replicas": "3"}
    for changes, told in zip(hurting, ("one place only", "one broker down stops every send"), strict=True):
        change(three_brokers, topics.actions, changes)
        status, lines, _ = tell(*checked)
        assert status == 1
        [line] = lines
        assert line.startswith(f"HURTS  {topics.actions}: min.insync.replicas = ")
        assert told in line
    create_topic(three_brokers.servers, f"{topic_name}-lone", 2, 1, APPEND_TIME)
    status, lines, _ = tell("topics", "check", "--log", f"kafka://{','.join(three_brokers.servers)}/{topic_name}-lone", *settings(topics.names))
    assert status == 1
    assert f"HURTS  {topic_name}-lone: 1 replica" in lines[0]


HURTING: list[tuple[dict[str, str], str]] = [
    ({"message.timestamp.type": "CreateTime"}, "message.timestamp.type = CreateTime"),
    ({"unclean.leader.election.enable": "true"}, "unclean.leader.election.enable = true"),
    ({"cleanup.policy": "compact"}, "cleanup.policy = compact"),
    ({"cleanup.policy": "compact,delete"}, "cleanup.policy = "),
    ({"max.message.bytes": "1000012"}, "max.message.bytes = 1,000,012"),
    ({"retention.ms": "60000"}, "retention.ms = 60,000"),
]


@pytest.mark.kafka
def test_each_setting_that_hurts_is_a_line(kafka: KafkaCluster, topic_name: str, tell: Tell) -> None:
    topics = Topics(kafka.servers, topic_name, 2)
    assert tell("topics", "create", "--log", topics.url, "--partitions", "2", *settings(topics.names))[0] == 0
    right = settings_of(kafka, topics.name)
    for changes, told in HURTING:
        change(kafka, topics.name, changes)
        status, lines, _ = tell("topics", "check", "--log", topics.url, *settings(topics.names))
        hurting = [line for line in lines if line.startswith("HURTS")]
        assert (status, len(hurting)) == (1, 1), (changes, lines)
        assert hurting[0].startswith(f"HURTS  {topics.name}: {told}")
        change(kafka, topics.name, {name: right[name] for name in changes})
    change(kafka, topics.actions, {"message.timestamp.type": "CreateTime", "retention.ms": "60000"})
    status, lines, _ = tell("topics", "check", "--log", topics.url, "--partitions", "3", *settings(topics.names))
    assert status == 1
    assert [line for line in lines if line.startswith("HURTS")] == [line for line in lines if "has 2 partitions, not 3" in line]
    assert any(line.startswith(f"note   {topics.actions}: message.timestamp.type") for line in lines), "alerts do not live by the log's time"


@pytest.mark.kafka
def test_a_topic_that_is_missing_hurts(kafka: KafkaCluster, topic_name: str, tell: Tell) -> None:
    topics = Topics(kafka.servers, topic_name, 2)
    status, lines, _ = tell("topics", "check", "--log", topics.url, *settings(topics.names))
    assert status == 1
    assert [line.split(":")[0] for line in lines] == [f"HURTS  {name}" for name in (topics.name, topics.actions, topics.dead_letters)]
    assert all("make it by" in line for line in lines)


# --- doctor -----------------------------------------------------------------------------------------------------------
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.kafka
def test_a_doctor_of_a_good_setup_finds_nothing(kafka: KafkaCluster, topic_name: str, tell: Tell, tmp_path: Path) -> None:
    topics = Topics(kafka.servers, topic_name, 2)
    assert tell("topics", "create", "--log", topics.url, *settings(topics.names))[0] == 0
    status, lines, error = tell("doctor", "--log", topics.url, "--lake", str(tmp_path / "lake"), *settings(topics.names))
    assert (status, error) == (0, ""), lines
    assert [line[6:16].rstrip() for line in lines if line.startswith("ok")] == ["python", "kernels", "ray", "memory", "shm", "log", "topics", "lake"]
    assert not [line for line in lines if line.startswith("FAIL")]


@pytest.fixture
def quick_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without starting Ray: one test of the doctor does."""
    monkeypatch.setattr(doctor, "_ray", lambda: iter([Check("ok", "ray", "not started")]))


def failing(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("FAIL")]


@pytest.mark.kafka
@pytest.mark.usefixtures("quick_doctor")
def test_a_doctor_names_each_topic_that_is_missing(kafka: KafkaCluster, topic_name: str, tell: Tell) -> None:
    topics = Topics(kafka.servers, topic_name, 2)
    status, lines, _ = tell("doctor", "--log", topics.url, *settings(topics.names))
    assert status == 1
    assert [line.split()[:3] for line in failing(lines)] == [["FAIL", "topics", f"{name}:"] for name in (topics.name, topics.actions, topics.dead_letters)]


@pytest.mark.usefixtures("quick_doctor")
def test_a_doctor_has_one_line_for_a_log_that_nobody_serves_and_goes_on(tell: Tell, tmp_path: Path) -> None:
    status, lines, _ = tell("doctor", "--log", f"kafka://127.0.0.1:{free_port()}", "--lake", str(tmp_path / "lake"))
    assert status == 1
    [line] = failing(lines)
    assert line.startswith("FAIL  log ")
    assert "nothing listens there" in line
    assert lines[-1].startswith("ok    lake")


@pytest.mark.usefixtures("quick_doctor")
def test_a_doctor_has_one_line_for_a_lake_that_cannot_be_written(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here is no room for a directory")
    status, lines, _ = tell("doctor", "--log", f"embedded:{tmp_path / 'log'}", "--lake", str(tmp_path / "file" / "lake"))
    assert status == 1
    [line] = failing(lines)
    assert line.startswith("FAIL  lake ")
    assert not (tmp_path / "log").exists(), "a doctor makes no log"


@pytest.mark.usefixtures("quick_doctor")
def test_a_doctor_looks_at_an_embedded_log_and_says_what_is_wrong_with_a_name(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    status, lines, _ = tell("doctor", "--log", f"embedded:{tmp_path / 'log'}")
    assert (status, len(failing(lines))) == (1, 1)
    status, lines, _ = tell("doctor", "--log", "nats://somewhere")
    assert (status, len(failing(lines))) == (1, 1)
    assert "neither embedded: nor kafka://" in failing(lines)[0]
