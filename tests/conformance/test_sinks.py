"""Every sink of rows keeps every promise of one: in memory, lines in files, topics of a real Kafka, Elasticsearch and OpenSearch themselves."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from keystone.config import ElasticConfig, KafkaConfig
from keystone.log.url import KafkaUrl
from keystone.sinks.base import KINDS, RawSink
from keystone.sinks.elastic import ElasticRows
from keystone.sinks.elastic_admin import setup
from keystone.sinks.elastic_http import Nodes
from keystone.sinks.elastic_schema import INDEXED_KINDS
from keystone.sinks.file_rows import FileRows
from keystone.sinks.memory import MemoryRows
from keystone.sinks.topic_rows import TopicRows
from tests.kafka_server import KafkaCluster
from tests.rdkafka import Confluent, create_topic
from tests.search_server import SearchServer

from .sink_suite import SinkSuite


class MemoryPlace:
    def __init__(self) -> None:
        self._rows = MemoryRows()

    def raw(self) -> RawSink:
        return self._rows

    def there(self, kind: str) -> dict[str, int]:
        return {document.id: document.revision for document in self._rows.documents.values() if document.kind == kind}


class FilePlace:
    """Readers drop repeats: the highest revision of an id."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sinks: list[FileRows] = []

    def raw(self) -> RawSink:
        if not self._sinks:
            self._sinks.append(FileRows(self._directory, "a/1", KINDS))  # one writer a file
        return self._sinks[0]

    def there(self, kind: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for line in (self._directory / f"{kind}-a_1.ndjson").read_bytes().split(b"\n")[:-1]:
            said = orjson.loads(line)
            assert isinstance(said["row"], dict)
            found[said["id"]] = max(found.get(said["id"], -1), said.get("revision", -1))
        return found


class TopicPlace:
    """As ``FilePlace``; read by another client, whole."""

    def __init__(self, cluster: KafkaCluster, topic: str) -> None:
        self._cluster, self._topic = cluster, topic
        create_topic(cluster.servers, topic, 3)

    def raw(self) -> RawSink:
        return TopicRows(KafkaUrl(tuple(self._cluster.servers), self._topic), KafkaConfig(), role="test")

    def there(self, kind: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for record in Confluent().consume(self._cluster.servers, self._topic):
            said = dict(record.headers)
            assert isinstance(orjson.loads(record.value or b""), dict)
            if said["kind"].decode() == kind:
                name = said["id"].decode()
                assert record.key == name.encode()
                found[name] = max(found.get(name, -1), int(said.get("revision", b"-1")))
        return found


class ElasticPlace:
    def __init__(self, server: SearchServer) -> None:
        self.server = server
        list(setup(Nodes(server.url, ElasticConfig())))

    def raw(self) -> RawSink:
        return ElasticRows(Nodes(self.server.url, ElasticConfig()))

    def there(self, kind: str) -> dict[str, int]:
        try:
            return self._there(kind)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            return {}  # the index is just being made

    def _there(self, kind: str) -> dict[str, int]:
        self.server.call("POST", f"/keystone-{kind}-*/_refresh")
        found = self.server.call("POST", f"/keystone-{kind}-*/_search", {"size": 10_000, "version": True, "query": {"match_all": {}}})
        hits = found["hits"]["hits"]
        assert len({hit["_id"] for hit in hits}) == len(hits) == found["hits"]["total"]["value"]
        return {hit["_id"]: hit["_version"] if kind == "cohorts" and hit["_version"] > 1 else -1 for hit in hits}

    def clear(self) -> None:
        for kind in INDEXED_KINDS:
            for row in self.server.call("GET", f"/_cat/indices/keystone-{kind}-*?format=json&h=index"):
                self.server.call("DELETE", f"/{row['index']}")


class TestMemoryRows(SinkSuite):
    @pytest.fixture
    def place(self) -> MemoryPlace:
        return MemoryPlace()


class TestFileRows(SinkSuite):
    @pytest.fixture
    def place(self, tmp_path: Path) -> FilePlace:
        return FilePlace(tmp_path / "rows")


class TestTopicRows(SinkSuite):
    @pytest.fixture
    def place(self, kafka: KafkaCluster, topic_name: str) -> TopicPlace:
        return TopicPlace(kafka, topic_name)


@pytest.mark.search
class TestElasticRows(SinkSuite):
    kinds = INDEXED_KINDS

    @pytest.fixture
    def place(self, search: SearchServer) -> Iterator[ElasticPlace]:
        made = ElasticPlace(search)
        made.clear()
        yield made
        made.clear()
