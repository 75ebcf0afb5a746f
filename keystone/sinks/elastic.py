"""Documents into Elasticsearch 8 and 9 or OpenSearch 3, by ``_bulk``.

Repeats change nothing: alerts and sessions are created under their id (409: it is there), cohort rows carry their revision as an
external version (409: there is as new a one). Statuses decide, never names of errors, which differ between servers.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

import orjson

from keystone.errors import SinkBusy
from keystone.logs import get
from keystone.sinks.base import DONE, NOT_REVISED, Answer, Document, Outcome
from keystone.sinks.elastic_admin import ElasticRefused, unready
from keystone.sinks.elastic_http import TOO_MANY, Nodes, trouble_of
from keystone.sinks.elastic_schema import INDEXED_KINDS, index_of

BULK: Final = "/_bulk?filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason,items.*.error.caused_by.reason"
NDJSON_TYPE: Final = "application/x-ndjson"
NOT_SET_UP_WAIT_MS: Final = 10_000
CONFLICT, TOO_LARGE, BAD = 409, 413, 400
#: Item statuses that say something about the cluster, not about the document: no permission, a block, no index.
CLUSTER_STATUSES: Final = frozenset({401, 403, 404, TOO_MANY})
#: Of the cluster's troubles two come as 400. No shard more is allowed, on all three servers in these words:
NO_MORE_SHARDS: Final = "maximum"
CLOSED: Final = "index_closed_exception"  # somebody closed the day's index; 400 too
KNOWN_MAX: Final = 64  # indices

log = get(__name__)


class ElasticRows:
    """A ``RawSink`` of ``INDEXED_KINDS``. The templates must be installed (``keystone.sinks.elastic_admin``): without them nothing is sent."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._known: set[str] = set()  # indices for which the templates were looked at
        self._bytes_max = sys.maxsize  # of a request, as far as one was refused as too large

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        """One request, or several where it is too large or one document spoils all."""
        said = [_lines_or_answer(document) for document in documents]
        answers = {place: one for place, one in enumerate(said) if isinstance(one, Answer)}
        ready = {place: one for place, one in enumerate(said) if not isinstance(one, Answer)}
        later, unasked = Answer(Outcome.AGAIN), len(answers)
        parts = deque([list(ready)] if ready else [])
        try:
            while parts:
                part = parts.popleft()
                self._look_at_templates({ready[place][0] for place in part})
                told = self._ask([ready[place][1] for place in part])
                if told is None:
                    middle = len(part) // 2
                    parts.extendleft((part[middle:], part[:middle]))
                else:
                    answers.update(zip(part, told, strict=True))
        except SinkBusy as error:
            if len(answers) == unasked:
                raise
            later = Answer(Outcome.AGAIN, str(error))  # what was answered stands
        return [answers.get(place, later) for place in range(len(documents))]

    def close(self) -> None:
        self._nodes.close()

    def _ask(self, lines: Sequence[bytes]) -> list[Answer] | None:
        """What became of each; None: the request must be parted. What cannot be sent even alone is refused."""
        body = b"".join(lines)
        if len(lines) > 1 and len(body) >= self._bytes_max:
            return None
        reply = self._nodes.request("POST", BULK, body, NDJSON_TYPE)
        if reply.status == TOO_LARGE or (reply.status == BAD and reply.is_servers_own()):
            if len(lines) == 1:
                return [Answer(Outcome.REFUSED, f"status {reply.status}: {reply.reason()}")]
            if reply.status == TOO_LARGE:
                self._bytes_max = min(self._bytes_max, len(body))
            return None
        if reply.status != 200:
            raise trouble_of(reply)
        answer = reply.json()
        items = answer.get("items") if isinstance(answer, dict) else None
        if not isinstance(items, list) or len(items) != len(lines):
            raise SinkBusy("the answer is none to a bulk request: look at what listens at the URL")
        return [answer_of(item) for item in items]

    def _look_at_templates(self, indices: AbstractSet[str]) -> None:
        """Before the first document of each index: one made without its template would take its mappings from what devices send."""
        if indices <= self._known:
            return
        try:
            problems = unready(self._nodes)
        except ElasticRefused as error:
            raise SinkBusy(str(error), wait_ms=NOT_SET_UP_WAIT_MS) from error
        if problems:
            raise SinkBusy(f"{problems[0]}: run keystone elastic setup --elastic {','.join(self._nodes.urls)}", wait_ms=NOT_SET_UP_WAIT_MS)
        self._known = {*(self._known if len(self._known) < KNOWN_MAX else ()), *indices}


def _lines_or_answer(document: Document) -> tuple[str, bytes] | Answer:
    """Index and lines; what no index can take is refused alone."""
    if document.kind not in INDEXED_KINDS:
        return Answer(Outcome.REFUSED, f"no index is kept for {document.kind}: route them to a topic or files")
    try:
        return index_of(document.kind, document.day), lines_of(document)
    except (ValueError, OverflowError):
        return Answer(Outcome.REFUSED, f"day {document.day} since 1970 is in no calendar")


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
    is_clusters = status in CLUSTER_STATUSES or status >= 500 or (status == BAD and _is_no_fault_of_the_document(reason))
    return Answer(Outcome.AGAIN if is_clusters else Outcome.REFUSED, reason)


def _is_no_fault_of_the_document(reason: str) -> bool:
    return (NO_MORE_SHARDS in reason and "shards" in reason) or reason.startswith(f"status {BAD}: {CLOSED}")


def _reason(error: Any) -> str:
    if not isinstance(error, dict):
        return str(error)
    cause = error.get("caused_by")
    more = f" ({cause.get('reason')})" if isinstance(cause, dict) else ""
    return f"{error.get('type')}: {error.get('reason')}{more}"
