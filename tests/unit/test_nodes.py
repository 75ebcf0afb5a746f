"""Where actors of a cluster go, how many it takes, and what is refused because only one machine has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import ray

from keystone.actors import growth, nodes, runtime
from keystone.actors.loop import FINISHED, OVER, READY, RUNNING
from keystone.actors.nodes import COMMITTER, CPU_CRUMB, FLEET, SESSION, SUPERVISOR, Node, Placement, check_shared
from keystone.actors.supervisor import Supervisor, Ward
from keystone.bench.cluster import Outages, fitted
from keystone.bench.logs import Received
from keystone.bench.machine import CpuMeter, Machine
from keystone.bench.plan import BenchPlan, Options, resolve
from keystone.errors import UsageError
from keystone.ownership import Ownership
from keystone.run import cluster as run_cluster
from keystone.run.options import ActorCount

HEAD = Node("a" * 56, "10.0.0.1", {"CPU": 2.0, "head": 1.0, "fleet": 2.0}, is_ours=True)
WORKER = Node("b" * 56, "10.0.0.2", {"CPU": 8.0, "session": 6.0}, is_ours=False)
OTHER = Node("c" * 56, "10.0.0.3", {"CPU": 8.0, "session": 6.0}, is_ours=False)
MARKED = Placement((HEAD, WORKER, OTHER), is_joined=True)
PLAIN = Placement(tuple(Node(x * 56, f"10.0.0.{i}", {"CPU": 4.0}, is_ours=i == 1) for i, x in enumerate("abc", 1)), is_joined=True)


def plan_of(**given: Any) -> tuple[Options, BenchPlan]:
    machine = Machine("cpu", 4, 16_000, 12_000, (0.0, 0.0, 0.0), "Linux", "3.11")
    options = Options(eps=10_000, **given)
    return options, resolve(options, machine)


# --- placement --------------------------------------------------------------------------------------------------------
def test_actors_take_a_unit_of_what_nodes_were_set_up_for() -> None:
    for kind, resource in ((SESSION, "session"), (FLEET, "fleet")):
        assert MARKED.options(kind) == {"resources": {resource: 1}, "scheduling_strategy": "SPREAD"}


def test_who_supervises_stays_with_the_program() -> None:
    for kind in (COMMITTER, SUPERVISOR):
        assert MARKED.options(kind)["scheduling_strategy"].node_id == HEAD.node_id


def test_without_resources_sessions_spread_and_devices_stay_with_the_program() -> None:
    assert PLAIN.options(SESSION) == {"scheduling_strategy": "SPREAD", "num_cpus": CPU_CRUMB}
    assert PLAIN.options(FLEET)["scheduling_strategy"].node_id == PLAIN.nodes[0].node_id


def test_a_ray_of_our_own_leaves_no_choice() -> None:
    assert all(Placement().options(kind) == {} for kind in (SESSION, FLEET, COMMITTER, SUPERVISOR))


def test_one_node_of_a_cluster_is_used_as_it_was_set_up() -> None:
    alone = Placement((replace(HEAD, resources={"session": 2.0}),), is_joined=True)
    assert alone.options(SESSION)["resources"] == {"session": 1}
    options, plan = plan_of()
    assert fitted(options, plan, alone).session_actors == 2
    assert run_cluster.fitted(None, 64, 1, alone) == (1, 1)


def test_auto_is_what_the_nodes_offer_or_half_of_their_cores() -> None:
    assert MARKED.session_actors() == 12
    assert PLAIN.session_actors() == 6


def test_more_actors_than_there_is_room_for_are_refused() -> None:
    MARKED.check_room({SESSION: 12, FLEET: 2})
    with pytest.raises(UsageError, match=r"13 session actors are wanted, the nodes offer 12 of the resource 'session': fewer --session-actors"):
        MARKED.check_room({SESSION: 13})
    PLAIN.check_room({SESSION: 1_000})


# --- how many -----------------------------------------------------------------------------------------------------------
def test_a_bench_takes_what_is_offered_and_partitions_for_all() -> None:
    options, plan = plan_of()
    chosen = fitted(options, plan, MARKED)
    assert (chosen.session_actors, chosen.partitions) == (12, 24)


def test_a_bench_takes_no_more_than_it_has_partitions() -> None:
    options, plan = plan_of(partitions=5)
    assert fitted(options, plan, MARKED).session_actors == 5


@pytest.mark.parametrize("placement", [Placement(), Placement((HEAD,), is_joined=True)])
def test_a_bench_on_one_node_is_as_without_a_cluster(placement: Placement) -> None:
    options, plan = plan_of()
    assert fitted(options, plan, placement) == plan


def test_a_bench_keeps_the_number_it_was_given() -> None:
    options, plan = plan_of(session_actors=3)
    assert fitted(options, plan, MARKED).session_actors == 3


@pytest.mark.parametrize(
    ("wanted", "partitions", "expected"),
    [(None, 64, (11, 1)), (None, 4, (4, 1)), (12, 64, (12, 0)), (2, 64, (2, 1))],
)
def test_a_run_leaves_room_for_who_stands_by(wanted: int | None, partitions: int, expected: tuple[int, int]) -> None:
    assert run_cluster.fitted(wanted, partitions, 1, MARKED) == expected


def test_a_run_without_resources_has_all_its_standbys() -> None:
    assert run_cluster.fitted(None, 64, 2, PLAIN) == (6, 2)


@pytest.mark.parametrize(("text", "count"), [("auto", None), ("1", 1), ("1024", 1_024)])
def test_a_count_of_actors(text: str, count: int | None) -> None:
    assert ActorCount().convert(text, None, None) == count


@pytest.mark.parametrize("text", ["0", "1025", "-1", "two", "1.5", ""])
def test_no_count_of_actors(text: str) -> None:
    with pytest.raises(click.BadParameter, match="neither auto nor a number from 1 to 1,024"):
        ActorCount().convert(text, None, None)


def test_a_job_runs_on_the_cluster_it_was_given_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runtime.JOB_MARK, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # of whoever uses Ray here, too: not ours to take
    assert runtime.cluster_address(None) is None
    assert runtime.cluster_address("10.0.0.9:6379") == "10.0.0.9:6379"
    monkeypatch.setenv(runtime.JOB_MARK, "{}")
    assert runtime.cluster_address(None) == "auto"


# --- shared directories -------------------------------------------------------------------------------------------------
def nodes_that_see(monkeypatch: pytest.MonkeyPatch, blind: set[str], silent: frozenset[str] = frozenset()) -> None:
    """Nodes that see this machine's files, but for the directories ``blind``; the ``silent`` do not answer."""

    def ask(asked: Sequence[Node], method: str, paths: list[str]) -> dict[str, list[bool]]:
        assert method == "sees"
        return {node.node_id: [Path(path).is_file() and Path(path).parent.name not in blind for path in paths] for node in asked if node.address not in silent}

    monkeypatch.setattr(nodes, "ask_nodes", ask)


def test_a_directory_that_all_nodes_see_is_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nodes_that_see(monkeypatch, set())
    check_shared({"--out": tmp_path / "a", "--state": tmp_path / "b"}, MARKED.nodes, "elsewhere")
    assert [list(path.iterdir()) for path in (tmp_path / "a", tmp_path / "b")] == [[], []]


def test_a_directory_of_one_node_is_told_with_its_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nodes_that_see(monkeypatch, {"b"})
    with pytest.raises(UsageError, match=r"^--state .*/b is another directory on the node 10\.0\.0\.2: elsewhere$"):
        check_shared({"--out": tmp_path / "a", "--state": tmp_path / "b"}, MARKED.nodes, "elsewhere")
    assert [list(path.iterdir()) for path in (tmp_path / "a", tmp_path / "b")] == [[], []]


def test_a_node_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nodes_that_see(monkeypatch, set(), frozenset({"10.0.0.3"}))
    with pytest.raises(UsageError, match=r"no process could be started on 10\.0\.0\.3 within 60 s"):
        check_shared({"--out": tmp_path}, MARKED.nodes, "elsewhere")


def test_one_node_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(nodes, "ask_nodes")
    check_shared({"--out": tmp_path}, (HEAD,), "elsewhere")


# --- nodes that join ----------------------------------------------------------------------------------------------------
class Cluster:
    """A supervisor whose cluster has the nodes that a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *there: Node) -> None:
        self.there, self.added, self.told, self.draining = list(there), list[int](), list[tuple[Any, ...]](), set[str]()
        self.sessions: list[Ward] = []
        self.placement = Placement(tuple(there), is_joined=True)
        self.keeper = SimpleNamespace(status={"owners_wanted": 2}, handle=SimpleNamespace(want=SimpleNamespace(remote=self._want)))
        monkeypatch.setattr(growth, "living_nodes", lambda: self.there)
        monkeypatch.setattr(growth, "draining_nodes", lambda: frozenset(self.draining))
        monkeypatch.setattr(growth, "LOOK_EVERY_S", 0.0)

    def _want(self, owners: int, wards: tuple[tuple[str, str, str], ...], retiring: tuple[str, ...]) -> None:
        self.told.append((owners, tuple(name for _, name, _ in wards), *([retiring] if retiring else [])))

    def of_kind(self, kind: str) -> list[Any]:
        return [self.keeper] if kind == SUPERVISOR else self.sessions

    def actor_name(self, name: str) -> str:
        return f"{name}-x"

    def growth(self, **given: Any) -> growth.Growth:
        about = {"add": self.added.extend, "check": lambda _: None, "name_of": lambda n: f"s{n}", "owners": 2, "numbered": 3}
        return growth.Growth(**(about | {"partitions": 64, "reserve": 1} | given))


SMALL = Node("d" * 56, "10.0.0.4", {"CPU": 4.0, "session": 3.0}, is_ours=True)


def test_a_node_that_joins_gets_session_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, SMALL)
    grown = cluster.growth()
    assert grown.tick(cluster) is None  # type: ignore[arg-type]
    cluster.there.append(WORKER)
    assert grown.tick(cluster) == "6 session actors more, on nodes that joined: 8 own partitions now"  # type: ignore[arg-type]
    assert cluster.added == [3, 4, 5, 6, 7, 8]
    assert cluster.told == [(8, tuple(f"s{n}" for n in range(9)))]


def test_who_gives_partitions_away_is_told_again_when_it_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, SMALL)
    grown = cluster.growth()
    grown.tick(cluster)  # type: ignore[arg-type]
    cluster.there.append(WORKER)
    grown.tick(cluster)  # type: ignore[arg-type]
    cluster.keeper.status["owners_wanted"] = 8
    grown.tick(cluster)  # type: ignore[arg-type]
    assert len(cluster.told) == 1
    cluster.keeper.status["owners_wanted"] = 2
    grown.tick(cluster)  # type: ignore[arg-type]
    assert len(cluster.told) == 2


def test_there_are_never_more_owners_than_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, SMALL)
    grown = cluster.growth(partitions=4)
    grown.tick(cluster)  # type: ignore[arg-type]
    cluster.there += [WORKER, OTHER]
    grown.tick(cluster)  # type: ignore[arg-type]
    assert grown.owners == 4


def test_a_node_that_does_not_reach_what_is_shared_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Placement) -> None:
        raise UsageError("--out is another directory there")

    cluster = Cluster(monkeypatch, SMALL)
    grown = cluster.growth(check=refuse)
    grown.tick(cluster)  # type: ignore[arg-type]
    cluster.there.append(WORKER)
    assert grown.tick(cluster) is None  # type: ignore[arg-type]
    assert cluster.added == []


def test_a_node_that_joined_while_the_first_actors_were_built_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, SMALL)
    cluster.there.append(WORKER)
    assert cluster.growth().tick(cluster) == "6 session actors more, on nodes that joined: 8 own partitions now"  # type: ignore[arg-type]


def test_actors_on_a_node_that_is_drained_give_their_partitions_away(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, SMALL, WORKER)
    cluster.sessions = [Ward(f"s{i}", SESSION, "", None, status={"node": node.node_id, "partitions": [i]}) for i, node in enumerate((SMALL, WORKER))]
    grown = cluster.growth()
    assert grown.tick(cluster) is None  # type: ignore[arg-type]
    cluster.draining.add(WORKER.node_id)
    assert grown.tick(cluster) == "1 session actor on nodes that leave: what they own goes to others"  # type: ignore[arg-type]
    assert cluster.told == [(1, ("s0", "s1", "s2"), ("s1",))]
    cluster.keeper.status |= {"owners_wanted": 1, "retiring": ["s1"]}
    assert grown.tick(cluster) is None  # type: ignore[arg-type]
    assert len(cluster.told) == 1
    cluster.sessions[1].status["partitions"] = []
    said = [grown.tick(cluster) for _ in range(2)]  # type: ignore[arg-type]
    assert said == ["session actors on nodes that leave own nothing any more: these nodes may go", None]


def test_a_new_node_takes_over_from_one_that_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, SMALL, WORKER)
    cluster.sessions = [Ward("s1", SESSION, "", None, status={"node": WORKER.node_id})]
    cluster.draining.add(WORKER.node_id)
    grown = cluster.growth(partitions=2, reserve=0)
    grown.tick(cluster)  # type: ignore[arg-type]
    cluster.there.append(OTHER)
    assert grown.tick(cluster) == "1 session actor more, on nodes that joined: 2 own partitions now"  # type: ignore[arg-type]


def test_a_node_that_leaves_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, SMALL, WORKER)
    grown = cluster.growth()
    grown.tick(cluster)  # type: ignore[arg-type]
    cluster.there.remove(WORKER)
    assert grown.tick(cluster) is None  # type: ignore[arg-type]
    assert cluster.added == []


def test_more_owners_take_their_share() -> None:
    ownership = Ownership(range(6), 1)
    for name in ("a", "b"):
        ownership.join(name)
    assert [(order.member, order.give) for order in ownership.orders()] == [("a", (0, 1, 2, 3, 4, 5))]
    ownership.want(2)
    (order,) = ownership.orders()
    assert (order.member, order.release) == ("a", (3, 4, 5))
    ownership.released("a", order.release)
    ownership.orders()
    assert {name: len(member.given) for name, member in ownership.members.items()} == {"a": 3, "b": 3}


def test_who_retires_lets_go_of_all_and_gets_nothing() -> None:
    ownership = Ownership(range(4), 2)
    for name in ("a", "b"):
        ownership.join(name)
    while orders := ownership.orders():
        for order in orders:
            ownership.released(order.member, order.release)
    ownership.retire(["b"])
    ownership.want(1)
    (order,) = ownership.orders()
    assert (order.member, len(order.release)) == ("b", 2)
    assert ownership.orders() == []  # one move at a time
    ownership.released("b", order.release)
    assert [(order.member, order.give) for order in ownership.orders()] == [("a", order.release)]
    assert ownership.orders() == []


def test_where_all_retire_somebody_owns_what_is_free() -> None:
    ownership = Ownership(range(2), 1)
    ownership.join("a")
    ownership.retire(["a"])
    assert [(order.member, order.give) for order in ownership.orders()] == [("a", (0, 1))]
    assert ownership.orders() == []


# --- nodes that leave ---------------------------------------------------------------------------------------------------
def supervisor_of(tmp_path: Path, *wards: Ward) -> Supervisor:
    """Who has heard this of its actors, and hears nothing new."""
    supervisor = Supervisor(tmp_path)
    supervisor.wards = list(wards)
    supervisor.poll = lambda: None  # type: ignore[method-assign]
    return supervisor


def said(name: str, state: str, *partitions: int, is_down: bool = False) -> Ward:
    return Ward(name, SESSION, "", None, status={"state": state, "partitions": partitions}, is_down=is_down)


def test_who_left_with_its_node_is_not_waited_for_once_others_own_what_it_owned(tmp_path: Path) -> None:
    left, stays = said("a", RUNNING, 1, is_down=True), said("b", FINISHED, 0, 1)
    supervisor = supervisor_of(tmp_path, left, stays, Ward("c", SESSION, "", None))  # the last was never seen: its node left before it came up
    assert supervisor.wait_until(OVER, SESSION, seconds=0)
    assert not supervisor.wait_until((READY, RUNNING, *OVER), SESSION, seconds=0)  # at the start all are waited for
    stays.status["partitions"] = (0,)
    assert not supervisor.wait_until(OVER, SESSION, seconds=0)


def test_who_lives_is_waited_for(tmp_path: Path) -> None:
    supervisor = supervisor_of(tmp_path, said("a", RUNNING), said("b", FINISHED, 0, 1))
    assert not supervisor.wait_until(OVER, SESSION, seconds=0)


def test_what_was_received_is_counted_once_wherever_a_partition_goes() -> None:
    received = Received()
    first = {"epochs": {0: 1, 1: 1}, "received_of": {0: 100, 1: 50}}
    assert received.total([first, {}]) == 150
    assert received.total([{"epochs": {1: 1}, "received_of": {1: 60}}]) == 160  # 0 is on its way: what was received stays received
    taken = {"epochs": {"0": 2}, "received_of": {"0": 90}}  # by a judge who reads JSON; it reads again from the checkpoint on
    lost = {"epochs": {0: 1}, "received_of": {0: 100}}  # the last that its first owner said
    assert received.total([taken, lost]) == 90 + 60
    assert received.total([lost, {"epochs": {0: 2}, "received_of": {0: 120}}]) == 120 + 60


# --- outages ------------------------------------------------------------------------------------------------------------
def ward(incarnation: str, owned: tuple[int, ...], at_s: float, **fields: Any) -> Any:
    about = {"is_down": False, "is_lost": False, "answered_at": at_s, "status": {"incarnation": incarnation, "partitions": owned}}
    return SimpleNamespace(**(about | fields))


def test_an_outage_lasts_from_the_last_sign_of_life_to_the_next_owner() -> None:
    outages = Outages(range(3))
    outages.look([ward("x", (0, 1), 10.0), ward("y", (2,), 10.1)], 10.1)
    outages.look([ward("x", (0, 1), 10.0, is_down=True), ward("y", (2,), 10.4)], 10.5)
    outages.look([ward("y", (2, 0), 11.9)], 12.0)
    outages.look([ward("y", (2, 0, 1), 12.9)], 13.0)
    assert outages.ended_ms == pytest.approx([2_000.0, 3_000.0])


def test_an_owner_that_was_only_slow_is_no_outage() -> None:
    outages = Outages(range(1))
    outages.look([ward("x", (0,), 10.0)], 10.0)
    outages.look([ward("x", (0,), 10.0, is_lost=True)], 16.0)
    outages.look([ward("x", (0,), 17.0)], 17.0)
    assert outages.ended_ms == []


def test_a_partition_that_a_living_owner_let_go_of_was_moved() -> None:
    outages = Outages(range(2))
    outages.look([ward("x", (0, 1), 10.0), ward("y", (), 10.0)], 10.0)
    outages.look([ward("x", (0,), 10.5), ward("y", (), 10.5)], 10.5)
    outages.look([ward("x", (0,), 10.8), ward("y", (1,), 10.8)], 10.8)
    assert outages.ended_ms == []
    assert outages.moved_ms == pytest.approx([300.0])


def test_whoever_takes_over_between_two_looks_is_seen() -> None:
    outages = Outages(range(1))
    outages.look([ward("x", (0,), 10.0)], 10.0)
    outages.look([ward("y", (0,), 10.2)], 10.25)
    assert outages.ended_ms == pytest.approx([250.0])


@pytest.mark.parametrize("is_down", [True, False])
def test_who_is_known_to_have_died_after_its_partition_was_claimed_was_lost_all_the_same(is_down: bool) -> None:
    """What an owner said last is as old as its last answer; others may own what it names by then."""
    outages = Outages(range(1))
    outages.look([ward("x", (0,), 10.0), ward("y", (), 10.0)], 10.0)
    outages.look([ward("x", (0,), 10.0), ward("y", (0,), 11.5)], 11.5)
    assert (outages.ended_ms, outages.moved_ms) == ([], [])
    outages.look([ward("x", (0,) if is_down else (), 12.5, is_down=is_down), ward("y", (0,), 12.5)], 12.5)
    found, none = (outages.ended_ms, outages.moved_ms) if is_down else (outages.moved_ms, outages.ended_ms)
    assert none == []
    assert len(found) == 1
    assert 0 <= found[0] <= 1_500


# --- costs --------------------------------------------------------------------------------------------------------------
def test_actors_elsewhere_are_on_the_bill_by_what_they_tell() -> None:
    told: list[tuple[str, str, float, int]] = [("x", "sessions", 5.0, 1 << 20), ("y", "fleet", 3.0, 1 << 20)]
    meter = CpuMeter(lambda _: "other", lambda: told)
    meter.open()
    told[:] = [("x", "sessions", 7.5, 2 << 20), ("y", "fleet", 4.0, 1 << 20), ("z", "sessions", 1.5, 1 << 20)]  # z: restarted, all of it is ours
    used = meter.close()
    assert (used["sessions"], used["fleet"]) == (4.0, 1.0)
    assert meter.rss_by_part_bytes["sessions"] == 3 << 20


def test_a_node_lists_what_it_was_set_up_for() -> None:
    assert [WORKER.offers(kind) for kind in (SESSION, FLEET, COMMITTER)] == [6, 0, 0]
    assert replace(WORKER, resources={}).offers(SESSION) == 0


# --- who is gone for good -------------------------------------------------------------------------------------------------
def session_ward(name: str, state: str = RUNNING, **told: Any) -> Ward:
    return Ward(name, SESSION, "nothing yet", None, status={"state": state, **told})


def test_a_session_actor_that_ray_does_not_make_anew_is_no_fault_where_another_can_own(tmp_path: Path) -> None:
    """Of a node that was drained Ray says that its actors died for good."""
    supervisor = Supervisor(tmp_path)
    gone = session_ward("session-1", partitions=(1, 3))
    supervisor.wards = [session_ward("session-0", partitions=(0, 2)), gone]
    for _ in range(2):
        supervisor._note_death(gone, ray.exceptions.ActorDiedError())
    assert (gone.is_down, gone.is_gone, gone.fault) == (True, True, None)
    assert supervisor.notes[0] == "session-1 (partitions 1, 3) is gone for good, as when its node leaves: others take what it owned"
    supervisor.poll = lambda: None  # type: ignore[method-assign]
    supervisor.wards[0].status |= {"state": FINISHED, "partitions": (0, 1, 2, 3)}
    assert supervisor.wait_until(OVER, SESSION, seconds=0)


@pytest.mark.parametrize("kind", [SESSION, COMMITTER])
def test_the_last_one_that_dies_for_good_is_a_fault(tmp_path: Path, kind: str) -> None:
    supervisor = Supervisor(tmp_path)
    last = Ward("last", kind, "everything", None, status={"state": RUNNING})
    supervisor.wards = [last]
    supervisor._note_death(last, ray.exceptions.ActorDiedError())
    assert last.fault == "last (everything) died"


def test_whoever_comes_up_after_the_others_were_told_to_finish_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may end before who stands by has ever answered."""
    told: list[str] = []
    calls = SimpleNamespace(**{name: SimpleNamespace(remote=lambda *_, name=name: told.append(name)) for name in ("begin", "finish", "status")})
    supervisor = Supervisor(tmp_path)
    supervisor.wards = [Ward("late", SESSION, "nothing yet", calls)]
    supervisor.order(SESSION, "finish")
    assert told == []  # a call would wait as long as it takes to come up
    answer = {"state": READY, "incarnation": "one", "is_fenced": False}
    monkeypatch.setattr("ray.get", lambda *_, **__: answer)
    for _ in range(2):
        supervisor._take(supervisor.wards[0])
    assert told == ["finish"]
    answer = answer | {"incarnation": "two"}
    supervisor._take(supervisor.wards[0])
    assert told == ["finish"] * 2
