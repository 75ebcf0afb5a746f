"""What holds of any capacity plan: sums are those of their parts, more load never takes less, and units mean what they say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keystone.capacity.demand import Demand
from keystone.capacity.fitting import fit
from keystone.capacity.lines import UNITS, Plan
from keystone.capacity.model import plan
from keystone.capacity.prices import load as load_prices
from keystone.capacity.rates import FIGURES, PARTS, Rate, Rates, kept
from keystone.capacity.sustained import sustained
from keystone.config import Config

RATES, PRICES, CONFIG = kept(), load_prices(None), Config()
COUNTS = {"actors", "partitions", "nodes", "brokers", "devices"}
#: Measured of one actor, or of the machine: what they say does not follow the load.
FIXED = {"actor_rate", "machine_cores", "sustained_embedded", "sustained_kafka", "cohort_documents", "commit_puts", "gets", "spare_nodes"}


@st.composite
def rates(draw: st.DrawFn) -> Rates:
    """Kept ones, each of the figures of cost and size up to four times as large or small."""
    factors = draw(st.fixed_dictionaries({}, optional={name: st.floats(0.25, 4) for name in FIGURES if not name.endswith("busy_share")}))
    figures = {name: Rate(min(FIGURES[name][2], max(FIGURES[name][1], rate.value * factors.get(name, 1.0))), "drawn") for name, rate in RATES.figures.items()}
    for log in ("embedded", "kafka"):
        for kind in ("us", "busy_us"):
            figures[f"{log}_loop_{kind}"] = min(figures[f"{log}_loop_{kind}"], figures[f"{log}_sessions_{kind}"], key=lambda rate: rate.value)
        assume(figures[f"{log}_other_base_cores"].value < 2)
        assume(figures[f"{log}_broker_base_cores"].value < 2)
    return Rates("drawn", draw(st.integers(1, 128)), RATES.speed_events_per_s, figures)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    eps = draw(st.floats(1, 2e7))
    return Demand(
        eps=eps,
        devices=draw(st.integers(1, 10**9)),
        event_bytes=draw(st.none() | st.floats(20, 10_000)),
        codec=draw(st.sampled_from(["none", "lz4", "zstd"])),
        replication=draw(st.integers(1, 5)),
        headroom=draw(st.floats(0, 0.9)),
        retention_hours=draw(st.floats(0, 1_000)),
        zones=draw(st.integers(1, 5)),
        lake_days=draw(st.floats(0, 400)),
        index_days=draw(st.floats(0, 60)),
        has_index=draw(st.booleans()),
        instance=draw(st.sampled_from(["c7i.4xlarge", "m7i.large"])),
    )


def lines_of(made: Plan) -> dict[str, Any]:
    return {line.key: line for section in made.sections for line in section}


@given(demands(), rates())
def test_every_sum_is_that_of_its_parts(demand: Demand, model: Rates) -> None:
    made = plan(demand, model, PRICES, CONFIG)
    found = lines_of(made)
    assert len(found) == sum(len(section.lines) for section in made.sections), "a key stands in two sections"
    sums = [line for line in found.values() if line.parts]
    assert {"session_cores", "session_gib", "kafka_network", "puts", "nodes", "usd"} <= {line.key for line in sums}
    for line in sums:
        assert {found[part].unit for part in line.parts} == {line.unit}
        assert line.value == round(sum(found[part].value for part in line.parts), UNITS[line.unit])
    in_cost = {line.key for section in made.sections if section.title == "cost" for line in section}
    assert in_cost == {"usd", *found["usd"].parts}, "a cost that is in no sum"
    for line in found.values():
        assert line.value >= 0
        assert line.value == round(line.value, UNITS[line.unit])
        assert line.unit not in COUNTS or line.value == int(line.value)


@given(demands(), rates(), st.floats(1, 50), st.booleans())
def test_more_load_never_takes_less(demand: Demand, model: Rates, factor: float, is_eps: bool) -> None:
    more = dataclasses.replace(demand, **({"eps": demand.eps * factor} if is_eps else {"devices": int(demand.devices * min(factor, 10))}))
    small, large = lines_of(plan(demand, model, PRICES, CONFIG)), lines_of(plan(more, model, PRICES, CONFIG))
    assert set(small) == set(large)
    for key, line in small.items():
        if key == "broker_disk":  # of each broker: more brokers share it
            continue
        assert large[key].value >= line.value, key
        if key in FIXED:
            assert large[key].value == line.value, key


@given(demands(), rates(), st.floats(0, 0.9))
def test_more_headroom_never_takes_less(demand: Demand, model: Rates, headroom: float) -> None:
    low, high = sorted([demand.headroom, headroom])
    small, large = (lines_of(plan(dataclasses.replace(demand, headroom=share), model, PRICES, CONFIG)) for share in (low, high))
    for key in ("session_actors", "session_cores", "brokers", "nodes", "usd", "fleet_actors"):
        assert large[key].value >= small[key].value, key


@given(demands(), rates())
def test_units_agree_with_one_another(demand: Demand, model: Rates) -> None:
    """The same quantity, told in two units, or reached from two sides."""
    made = lines_of(plan(demand, model, PRICES, CONFIG))
    value = {key: line.value for key, line in made.items()}
    size = demand.event_bytes if demand.event_bytes is not None else model["event_bytes"]
    assert value["kafka_in"] == pytest.approx(demand.eps * size / model[f"codec_ratio_{demand.codec}"] / 1e6, abs=0.05)
    assert value["kafka_out"] == value["kafka_in"]
    assert value["kafka_replication"] == pytest.approx(value["kafka_in"] * (demand.replication - 1))
    assert value["kafka_disk"] * (1 - demand.headroom) == pytest.approx(
        value["kafka_writes"] * demand.retention_hours * 3.6, abs=demand.retention_hours * 1 + 1
    )
    assert value["lake_daily"] * 1e9 / 86_400 <= value["bucket_writes"] * 1e6 + 1.2e5
    assert value["lake_gb"] == pytest.approx(value["lake_daily"] * demand.lake_days, abs=0.51)
    assert value["session_actors"] * value["actor_rate"] * (1 - demand.headroom) >= demand.eps * 0.999 - 1
    assert value["brokers"] >= demand.replication
    assert value["nodes"] * 730 * min(i.usd_per_hour for i in PRICES.instances.values()) <= value["usd"] + 1


@given(rates(), st.floats(1e4, 1e7), st.sampled_from(["embedded", "kafka"]))
def test_a_faster_machine_sustains_more_and_bytes_stay(model: Rates, unit: float, log: str) -> None:
    scaled = model.on(unit, machine="other", cores=model.cores)
    faster = unit >= model.speed_events_per_s
    before, after = sustained(model, log).eps, sustained(scaled, log).eps
    assert after >= before * (1 - 1e-9) if faster else after <= before * (1 + 1e-9)
    assert all(scaled[name] == model[name] for name in FIGURES if name.endswith(("_bytes", "_hour")) or name.startswith("codec_ratio"))
    assert scaled.on(model.speed_events_per_s, machine="drawn", cores=model.cores)[f"{log}_loop_us"] == pytest.approx(model[f"{log}_loop_us"])


@given(rates(), st.sampled_from(["embedded", "kafka"]))
def test_what_a_machine_sustains_fits_its_cores_and_its_loops(model: Rates, log: str) -> None:
    able = sustained(model, log)
    used = sum(able.eps * model[f"{log}_{part}_busy_us"] / 1e6 for part in PARTS)
    assert used <= model.cores * model[f"{log}_busy_share"] + 1e-6
    assert able.eps * model[f"{log}_loop_busy_us"] / 1e6 <= max(1, model.cores - 1) + 1e-6
    assert able.eps == min(able.by_cores, able.by_fleet, able.by_loop)


@given(
    st.dictionaries(st.sampled_from([*PARTS, "loop"]), st.tuples(st.floats(0, 1), st.floats(0.01, 20)), min_size=1),
    st.floats(1_000, 1e6),
    st.floats(1.6, 30),
)
def test_a_line_is_found_again_from_two_reports(truth: dict[str, tuple[float, float]], low: float, factor: float) -> None:
    def report(eps: float) -> dict[str, Any]:
        return {"achieved_eps": eps, "cpu_us_per_event": {part: us + base * 1e6 / eps for part, (base, us) in truth.items()}}

    found = fit(report(low), report(low * factor))
    for part, (base, us) in truth.items():
        if part != "loop":
            assert found[f"{part}_us"] == pytest.approx(us, abs=1e-3)
            assert found[f"{part}_base_cores"] == pytest.approx(base, abs=1e-3)
            assert found[f"{part}_busy_us"] == pytest.approx(us + base * 1e6 / (low * factor))
    assert found["loop_us"] <= found["sessions_us"]
    assert found["loop_busy_us"] <= found["sessions_busy_us"]
