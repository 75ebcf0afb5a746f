"""Documents into Elasticsearch 8 and 9 or OpenSearch 3, by ``_bulk``.

Repeats change nothing: alerts and sessions are created under their id (409: it is there), cohort rows carry their revision as an
external version (409: there is as new a one). Statuses decide, never names of errors, which differ between servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from keystone.errors import SinkBusy
from keystone.logs import get
from keystone.sinks.base import DONE, NOT_REVISED, Answer, Document, Outcome
from keystone.sinks.elastic_admin import ElasticRefused, unready
from keystone.sinks.elastic_http import TOO_MANY, Nodes, Reply, trouble_of
from keystone.sinks.elastic_schema import index_of

BULK: Final = "/_bulk?filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason,items.*.error.caused_by.reason"
NDJSON_TYPE: Final = "application/x-ndjson"
NOT_SET_UP_WAIT_MS: Final = 10_000
CONFLICT, TOO_LARGE, BAD = 409, 413, 400
#: Item statuses that say something about the cluster, not about the document: no permission, a block, no index.
CLUSTER_STATUSES: Final = frozenset({401, 403, 404, TOO_MANY})
#: The one trouble of the cluster that comes as 400: no shard more is allowed, on all three servers in these words.
NO_MORE_SHARDS: Final = "maximum"

log = get(__name__)


class ElasticRows:
    """A ``RawSink``. The templates must be installed (``keystone.sinks.elastic_admin``): without them nothing is sent."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._is_set_up = False

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        self._look_at_templates()
        reply = self._nodes.request("POST", BULK, b"".join(map(lines_of, documents)), NDJSON_TYPE)
        if reply.status == TOO_LARGE or (reply.status == BAD and reply.is_servers_own()):
            return self._halves(documents, reply)
        if reply.status != 200:
            raise trouble_of(reply)
        answer = reply.json()
        items = answer.get("items") if isinstance(answer, dict) else None
        if not isinstance(items, list) or len(items) != len(documents):
            raise SinkBusy("the answer is none to a bulk request: look at what listens at the URL")
        return [answer_of(item) for item in items]

    def close(self) -> None:
        self._nodes.close()

    def _halves(self, documents: Sequence[Document], reply: Reply) -> list[Answer]:
        """Too large together, or one of them spoils all: what cannot be sent even alone is refused."""
        if len(documents) == 1:
            return [Answer(Outcome.REFUSED, f"status {reply.status}: {reply.reason()}")]
        middle = len(documents) // 2
        answers: list[Answer] = []
        for half in (documents[:middle], documents[middle:]):
            try:
                answers += self.send_batch(half)
            except SinkBusy as error:  # the other half's answers stand
                answers += [Answer(Outcome.AGAIN, str(error))] * len(half)
        return answers

    def _look_at_templates(self) -> None:
        """Once. An index made without its template would take its mappings from what devices send."""
        if self._is_set_up:
            return
        try:
            problems = unready(self._nodes)
        except ElasticRefused as error:
            raise SinkBusy(str(error), wait_ms=NOT_SET_UP_WAIT_MS) from error
        if problems:
            raise SinkBusy(f"{problems[0]}: run keystone elastic setup --elastic {','.join(self._nodes.urls)}", wait_ms=NOT_SET_UP_WAIT_MS)
        self._is_set_up = True


def lines_of(document: Document) -> bytes:
    """Action and document, a line each. Both are JSON, so whatever a string holds, it ends no line."""
    where: dict[str, Any] = {"_index": index_of(document.kind, document.day), "_id": document.id}
    if document.revision == NOT_REVISED:
        action = orjson.dumps({"create": where})
    else:
        action = orjson.dumps({"index": where | {"version": document.revision, "version_type": "external"}})
    return b"%b\n%b\n" % (action, document.body.replace(b"\n", b" "))  # in JSON a bare line feed is white space, or a fault


def answer_of(item: dict[str, Any]) -> Answer:
    """What became of one document."""
    (result,) = item.values()
    status = result["status"]
    if status < 300 or status == CONFLICT:
        return DONE
    reason = f"status {status}: {_reason(result.get('error'))}"
    is_clusters = status in CLUSTER_STATUSES or status >= 500 or (status == BAD and NO_MORE_SHARDS in reason and "shards" in reason)
    return Answer(Outcome.AGAIN if is_clusters else Outcome.REFUSED, reason)


def _reason(error: Any) -> str:
    if not isinstance(error, dict):
        return str(error)
    cause = error.get("caused_by")
    more = f" ({cause.get('reason')})" if isinstance(cause, dict) else ""
    return f"{error.get('type')}: {error.get('reason')}{more}"
