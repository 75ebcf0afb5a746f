"""Group offsets, for the lag tools of people: nothing of ours ever starts from them."""

from __future__ import annotations

import threading
from typing import Any, Final

from kafka import errors
from kafka.protocol.consumer import OffsetCommitRequest
from kafka.protocol.metadata import FindCoordinatorRequest

from keystone.log.kafka.client import KafkaClient, log

COMMIT_EVERY_S: Final = 1.0
LAST_WAIT_MS: Final = 2_000.0  # for the commit at the end


class GroupOffsets:
    """Commits what readers report consumed, at most once in COMMIT_EVERY_S, as a group without members."""

    def __init__(self, client: KafkaClient, topic: str) -> None:
        self._client = client
        self._topic = topic
        self._group = client.config.group
        self._lock = threading.Lock()
        self._due: dict[int, int] = {}
        self._is_running = False
        self._is_refused = not self._group
        self.commits = 0

    def note(self, partition: int, offset: int) -> None:
        """Everything below ``offset`` is consumed. Returns at once."""
        if self._is_refused:
            return
        with self._lock:
            self._due[partition] = max(offset, self._due.get(partition, 0))
            starts, self._is_running = not self._is_running, True
        if starts:
            self._client.start(self._drive)

    async def _drive(self) -> None:
        while not self._client.is_closed and not self._is_refused:
            await self._client.net.sleep(COMMIT_EVERY_S)
            await self._commit()

    async def _commit(self) -> None:
        with self._lock:
            due, self._due = self._due, {}
        if not due:
            return
        try:
            await self._ask(due)
            self.commits += 1
        except errors.AuthorizationError:
            self._is_refused = True
            log.warning(
                "group %s may not be written: lag tools will not see how far this program is (allow READ on the group, or set kafka.group = '')", self._group
            )
        except Exception as error:  # noqa: BLE001 - a courtesy to lag tools must never cost more than itself
            log.debug("group offsets not committed: %s", error)
            with self._lock:
                self._due = due | self._due

    async def _ask(self, due: dict[int, int]) -> None:
        manager = self._client.control
        node = manager.least_loaded_node()
        if node is None:
            raise errors.NodeNotReadyError("no broker is known")
        found = await manager.send(FindCoordinatorRequest(key=self._group, key_type=0, coordinator_keys=[self._group], max_version=3), node)
        if found.error_code:
            raise errors.for_code(found.error_code)
        kinds = OffsetCommitRequest.OffsetCommitRequestTopic
        partitions = [
            kinds.OffsetCommitRequestPartition(partition_index=p, committed_offset=offset, committed_leader_epoch=-1, committed_metadata="")
            for p, offset in due.items()
        ]
        request: Any = OffsetCommitRequest(
            group_id=self._group, generation_id_or_member_epoch=-1, member_id="", group_instance_id=None, retention_time_ms=-1,
            topics=[kinds(name=self._topic, partitions=partitions)], max_version=8,
        )  # fmt: skip
        answer = await manager.send(request, found.node_id)
        for topic in answer.topics:
            for partition in topic.partitions:
                if partition.error_code:
                    raise errors.for_code(partition.error_code)

    def close(self) -> None:
        """Commit what is due, if that goes within LAST_WAIT_MS."""
        if self._is_running and not self._is_refused and not self._client.is_closed:
            try:
                commit = self._client.net.call_soon_with_future(self._commit)
                self._client.run(self._client.control.wait_for, commit, LAST_WAIT_MS)
            except Exception as error:  # noqa: BLE001 - see above
                log.debug("group offsets not committed at the end: %s", error)
