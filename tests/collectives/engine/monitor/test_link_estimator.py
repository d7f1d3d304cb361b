"""What traffic says of links, as a table: who was busy, and what follows."""

from __future__ import annotations

import numpy as np
import pytest

from collectives.engine.monitor.link_estimator import Traffic, changes, estimate_links
from collectives.topology import Host, Topology

MB = 1e6


def farm(*rates: float) -> Topology:
    """A host of one rank for each rate, in MB/s."""
    return Topology(tuple(Host(f"h{i}", (i,), rate * MB, rate * MB) for i, rate in enumerate(rates)))


Rates = dict[tuple[int, int], tuple[float, float]]


def traffic(seconds: float, rates: Rates, size: int = 4, planned_s: float = 1.0) -> Traffic:
    """Flows by (source, target) as (MB/s while busy, share of the seconds that it was busy)."""
    num_bytes, busy_s = np.zeros((size, size)), np.zeros((size, size))
    for (source, target), (rate, share) in rates.items():
        busy_s[source, target] = share * seconds
        num_bytes[source, target] = rate * MB * share * seconds
    return Traffic(seconds, planned_s, num_bytes, busy_s)


def everybody(rate: float, share: float) -> Rates:
    return {(i, j): (rate, share) for i in range(4) for j in range(4) if i != j}


def test_links_that_do_what_was_assumed_stay() -> None:
    assumed = farm(120, 120, 120, 120)
    assert estimate_links(assumed, assumed, traffic(2.0, everybody(39, 0.95))) == assumed


def test_idle_links_say_nothing() -> None:
    assumed = farm(120, 120, 120, 120)
    assert estimate_links(assumed, assumed, traffic(2.0, everybody(5, 0.02))) == assumed


def test_ops_that_take_as_long_as_planned_do_not_make_a_link_slower() -> None:
    flows = {(i, j): (20.0, 0.97) if 3 in (i, j) else (45.0, 0.45) for i in range(4) for j in range(4) if i != j}
    assert estimate_links(
        farm(120, 120, 120, 120), farm(120, 120, 120, 120), traffic(2.0, flows, planned_s=1.9)
    ) == farm(120, 120, 120, 120)


def test_a_lowered_link_is_believed_again_when_ops_take_less_than_planned() -> None:
    """All flows are busy all the time, since they queue at the other hosts' links."""
    lowered, measured = farm(120, 120, 120, 60), farm(120, 120, 120, 120)
    flows = {(i, j): (23.0, 0.95) if 3 in (i, j) else (40.0, 0.95) for i in range(4) for j in range(4) if i != j}
    assert estimate_links(lowered, measured, traffic(0.85, flows)) == measured
    estimated = estimate_links(lowered, measured, traffic(0.95, flows))
    assert [round(host.up_bytes_per_s / MB) for host in estimated.hosts] == [
        120, 120, 120, 69,
    ]  # fmt: skip


def test_a_host_whose_link_has_halved() -> None:
    """Its flows are busy all the time; those of the others wait for it most of the time and are fast when they run."""
    flows = {(i, j): (20.0, 0.97) if 3 in (i, j) else (45.0, 0.45) for i in range(4) for j in range(4) if i != j}
    seen = estimate_links(farm(120, 120, 120, 120), farm(120, 120, 120, 120), traffic(2.0, flows))
    assert [round(host.up_bytes_per_s / MB) for host in seen.hosts] == [120, 120, 120, 60]
    assert [round(host.down_bytes_per_s / MB) for host in seen.hosts] == [120, 120, 120, 60]
    assert changes(farm(120, 120, 120, 120), seen) == ["up of h3: 120.0 to 60.0 MB/s", "down of h3: 120.0 to 60.0 MB/s"]


def test_only_the_way_up_has_become_slower() -> None:
    flows = {(i, j): (15.0, 0.97) if i == 3 else (50.0, 0.4) for i in range(4) for j in range(4) if i != j}
    seen = estimate_links(farm(120, 120, 120, 120), farm(120, 120, 120, 120), traffic(2.0, flows))
    assert [round(host.up_bytes_per_s / MB) for host in seen.hosts] == [120, 120, 120, 45]
    assert [round(host.down_bytes_per_s / MB) for host in seen.hosts] == [120, 120, 120, 120]


def test_more_than_was_assumed_is_believed() -> None:
    seen = estimate_links(farm(60, 60, 60, 60), farm(60, 60, 60, 60), traffic(2.0, everybody(39, 0.99)))
    assert [round(host.up_bytes_per_s / MB) for host in seen.hosts] == [117, 117, 117, 117]


def test_a_link_that_is_back_is_believed_up_to_what_it_was() -> None:
    lowered, once = farm(120, 120, 120, 60), farm(120, 120, 120, 120)
    flows = {(i, j): (38.0, 0.3) if 3 in (i, j) else (40.0, 0.9) for i in range(4) for j in range(4) if i != j}
    seen = estimate_links(lowered, once, traffic(2.0, flows))
    assert seen.hosts[3].up_bytes_per_s == pytest.approx(114 * MB)
    faster = {flow: (80.0, share) if 3 in flow else (rate, share) for flow, (rate, share) in flows.items()}
    assert estimate_links(lowered, once, traffic(2.0, faster)).hosts[3].up_bytes_per_s == 120 * MB


def test_ranks_of_one_host_share_its_links_and_their_own_traffic_says_nothing() -> None:
    hosts = Topology((Host("a", (0, 1), 100 * MB, 100 * MB), Host("b", (2, 3), 100 * MB, 100 * MB)))
    flows = {(0, 1): (5000.0, 0.9), **{(i, j): (12.0, 0.95) for i in (0, 1) for j in (2, 3)}}
    seen = estimate_links(hosts, hosts, traffic(2.0, flows))
    assert round(seen.hosts[0].up_bytes_per_s / MB) == 48
    assert seen.hosts[0].memory_bytes_per_s == hosts.hosts[0].memory_bytes_per_s
