"""What must not go unnoticed: each takes one protection away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest import mock

from keystone.actors.committer import Committing
from keystone.checkpoint import Checkpoints
from keystone.sinks.iceberg.chain import _Partition
from tests.simulation.lake import SimCatalog


@contextmanager
def no_epochs() -> Iterator[bool]:
    """Nobody looks whether he still owns what he saves, or whether who saved it did."""

    def pending(self, headers):
        return [segment for header in headers for segment in header.segments]

    with mock.patch.object(Checkpoints, "check", return_value=None), mock.patch.object(Committing, "_pending", pending):
        yield False


@contextmanager
def no_chain() -> Iterator[bool]:
    """Whatever is given is committed: nobody compares it with what the table says was committed last."""
    with mock.patch.object(_Partition, "_look_at", return_value=(False, "")):
        yield False


@contextmanager
def no_compare_and_set() -> Iterator[bool]:
    """A commit lands whatever has been committed since it was planned."""
    add = SimCatalog.add

    def blind(self, name, paths, planned_on, head):
        add(self, name, paths, self.tables[name].head, head)

    with mock.patch.object(SimCatalog, "add", blind):
        yield False


@contextmanager
def no_rename() -> Iterator[bool]:
    """Objects and files are written where they are read: a crash, or a look at the wrong time, finds half of them."""
    yield True


@contextmanager
def none() -> Iterator[bool]:
    yield False


#: Each, entered, yields whether writes are torn.
MUTATIONS: dict[str, Callable[[], AbstractContextManager[bool]]] = {
    "none": none, "epochs": no_epochs, "chain": no_chain, "compare-and-set": no_compare_and_set, "rename": no_rename,
}  # fmt: skip
