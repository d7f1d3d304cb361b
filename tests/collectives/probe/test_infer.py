"""From readings to a topology, as a table of what could have been measured."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from collectives.probe.infer import Crossing, Readings, capacities, groups, infer, slow_pairs
from collectives.topology import Host, Pair, Topology


def readings(
    up: Sequence[float],
    down: Sequence[float] | None = None,
    slow: dict[tuple[int, int], float] | None = None,
    noise: float = 0.0,
    **more: object,
) -> Readings:
    """What hosts of these rates would show, each alone in its matching; `slow` pairs as given."""
    chance, count = random.Random(7), len(up)
    down = down or up

    def rate(i: int, j: int) -> float:
        if i == j:
            return 0.0
        return (slow or {}).get((i, j), min(up[i], down[j])) * (1 + chance.uniform(-noise, noise))

    plain: dict[str, object] = {
        "hosts": tuple("abcdefghij"[:count]),
        "latencies": tuple(tuple(0.0 if i == j else 1e-4 for j in range(count)) for i in range(count)),
        "memory": (1e10,) * count,
    }
    rates = tuple(tuple(rate(i, j) for j in range(count)) for i in range(count))
    return Readings(rates=rates, **{**plain, **more})  # type: ignore[arg-type]


def rates(topology: Topology) -> list[tuple[float, float]]:
    return [(host.up_bytes_per_s, host.down_bytes_per_s) for host in topology.hosts]


def slow_between(groups: Sequence[Sequence[int]], rate: float) -> dict[tuple[int, int], float]:
    """All pairs of hosts of different groups."""
    return {(i, j): rate for one in groups for other in groups if one is not other for i in one for j in other}


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_equal_hosts_get_equal_rates_whatever_the_noise(count: int) -> None:
    topology = infer(readings([120e6] * count, noise=0.015))
    (rate,) = {rate for both in rates(topology) for rate in both}
    assert rate == pytest.approx(120e6, rel=0.015)
    assert (topology.sites, topology.pairs) == ((), ())


def test_noise_of_three_per_cent_is_no_pair_and_no_site() -> None:
    topology = infer(readings([120e6, 120e6, 60e6, 12e6, 120e6], noise=0.03))
    assert (topology.sites, topology.pairs) == ((), ())
    assert rates(topology) == [(pytest.approx(rate, rel=0.03),) * 2 for rate in (120e6, 120e6, 60e6, 12e6, 120e6)]


def test_one_slow_host() -> None:
    topology = infer(readings([120e6, 120e6, 12e6, 120e6]))
    assert rates(topology) == [(120e6, 120e6), (120e6, 120e6), (12e6, 12e6), (120e6, 120e6)]
    assert topology.pairs == ()


def test_up_and_down_of_their_own() -> None:
    up, down = [120e6, 120e6, 24e6, 120e6], [120e6, 120e6, 120e6, 60e6]
    topology = infer(readings(up, down))
    assert rates(topology) == list(zip(up, down, strict=True))
    assert topology.pairs == ()


def test_two_hosts_with_different_ways() -> None:
    """What the up of one and the down of the other could do beyond each other can't be seen."""
    assert rates(infer(readings([120e6, 24e6], [120e6, 120e6]))) == [(120e6, 24e6), (24e6, 120e6)]


def test_a_slow_pair_is_a_pair_one_way_only() -> None:
    topology = infer(readings([120e6] * 4, slow={(1, 3): 30e6}))
    assert rates(topology) == [(120e6, 120e6)] * 4
    assert topology.pairs == (Pair("b", "d", 30e6),)
    assert topology.sites == ()


def test_a_pair_a_little_slower_than_its_hosts_is_noise() -> None:
    assert infer(readings([100e6] * 4, slow={(1, 3): 75e6})).pairs == ()


TWO_SITES = slow_between([(0, 1, 2), (3, 4)], 36e6)


def test_hosts_that_together_send_no_more_than_one_alone_are_a_site() -> None:
    crossings = (Crossing((0, 1, 2), 36e6, 35e6, 37e6, 36e6), Crossing((3, 4), 35e6, 36e6, 36e6, 37e6))
    topology = infer(readings([120e6] * 5, slow=TWO_SITES, crossings=crossings))
    assert [(site.name, site.hosts) for site in topology.sites] == [
        ("site a", ("a", "b", "c")),
        ("site d", ("d", "e")),
    ]
    assert [(site.up_bytes_per_s, site.down_bytes_per_s) for site in topology.sites] == [(36e6, 35e6), (35e6, 36e6)]
    assert rates(topology) == [(120e6, 120e6)] * 5
    assert topology.pairs == ()


def test_an_uplink_that_one_host_cannot_fill_has_what_all_got() -> None:
    crossings = (Crossing((0, 1, 2, 3), 60e6, 60e6, 120e6, 61e6),)
    slow = slow_between([(0, 1, 2, 3), (4, 5, 6, 7)], 40e6)
    (site,) = infer(readings([120e6] * 8, slow=slow, crossings=crossings)).sites
    assert (site.up_bytes_per_s, site.down_bytes_per_s) == (120e6, 60e6)


def test_one_way_shared_is_enough_for_a_site() -> None:
    crossings = (Crossing((3, 4), 36e6, 60e6, 37e6, 118e6),)
    (site,) = infer(readings([120e6] * 5, slow=TWO_SITES, crossings=crossings)).sites
    assert (site.up_bytes_per_s, site.down_bytes_per_s) == (36e6, 118e6)


def test_hosts_that_are_each_limited_alone_are_no_site_but_pairs() -> None:
    crossings = (Crossing((0, 1, 2), 36e6, 36e6, 71e6, 72e6), Crossing((3, 4), 36e6, 36e6, 72e6, 71e6))
    topology = infer(readings([120e6] * 5, slow=TWO_SITES, crossings=crossings))
    assert topology.sites == ()
    assert {(pair.source, pair.target): pair.bytes_per_s for pair in topology.pairs} == {
        (source, target): 36e6 for a in "abc" for b in "de" for source, target in ((a, b), (b, a))
    }


def test_a_slow_pair_within_a_site_stays_a_pair() -> None:
    crossings = (Crossing((0, 1, 2), 36e6, 36e6, 37e6, 36e6),)
    topology = infer(readings([120e6] * 5, slow={**TWO_SITES, (0, 1): 20e6}, crossings=crossings))
    assert Pair("a", "b", 20e6) in topology.pairs
    assert not [pair for pair in topology.pairs if (pair.source in "abc") != (pair.target in "abc")]


def test_a_hub_is_as_fast_as_all_others_can_show() -> None:
    hub = {"fan_up": {0: 350e6}, "fan_down": {0: 230e6}}
    assert rates(infer(readings([120e6] * 4, **hub)))[0] == (350e6, 230e6)


def test_a_fan_that_shows_little_more_is_noise() -> None:
    fan = {"fan_up": {0: 130e6}, "fan_down": {0: 20e6}}
    assert rates(infer(readings([120e6] * 4, **fan))) == [(120e6, 120e6)] * 4


def test_groups_are_hosts_that_reach_each_other_directly_or_by_others() -> None:
    assert groups(readings([120e6] * 5, slow=TWO_SITES)) == [(0, 1, 2), (3, 4)]
    assert groups(readings([120e6] * 4)) == [(0, 1, 2, 3)]
    one_slow_pair = readings([120e6] * 4, slow={(0, 1): 1e6})
    assert (slow_pairs(one_slow_pair), groups(one_slow_pair)) == ([(0, 1)], [(0, 1, 2, 3)])


def latencies(seconds: Sequence[float], uplink: dict[int, float] | None = None) -> tuple[tuple[float, ...], ...]:
    """What pairs take: the mean of both, and the uplink of each host that leaves its site."""

    def way(i: int, j: int) -> float:
        sites = uplink or {}
        crosses = (i in sites) != (j in sites)
        return (seconds[i] + seconds[j]) / 2 + (sites.get(i, 0.0) + sites.get(j, 0.0) if crosses else 0.0)

    hosts = range(len(seconds))
    return tuple(tuple(0.0 if i == j else way(i, j) for j in hosts) for i in hosts)


def test_latency_of_each_host() -> None:
    topology = infer(readings([120e6] * 4, latencies=latencies([100e-6, 20e-6, 3e-3, 50e-6])))
    assert [host.latency_s for host in topology.hosts] == pytest.approx([100e-6, 20e-6, 3e-3, 50e-6])


def test_two_hosts_share_their_latency() -> None:
    assert [host.latency_s for host in infer(readings([120e6] * 2)).hosts] == pytest.approx([1e-4, 1e-4], rel=1e-3)


def test_no_latency_is_negative() -> None:
    """a-b and a-c are quick, b-c takes more than their sum: no host's part explains all three."""
    between = ((0.0, 1e-5, 1e-5), (1e-5, 0.0, 9e-5), (1e-5, 9e-5, 0.0))
    assert min(host.latency_s for host in infer(readings([120e6] * 3, latencies=between)).hosts) == 0


def test_latency_of_a_site() -> None:
    told = latencies([100e-6, 100e-6, 100e-6, 40e-6, 40e-6], dict.fromkeys((0, 1, 2), 5e-3))
    crossings = (Crossing((0, 1, 2), 36e6, 36e6, 37e6, 36e6),)
    topology = infer(readings([120e6] * 5, slow=TWO_SITES, crossings=crossings, latencies=told))
    assert topology.sites[0].latency_s == pytest.approx(5e-3, rel=0.02)
    assert topology.latency_s(0, 3) == pytest.approx(70e-6 + 5e-3, rel=0.01)
    assert topology.latency_s(0, 1) == pytest.approx(100e-6, rel=0.01)


def test_one_host_has_no_network_to_measure() -> None:
    (host,) = infer(Readings(("a", "a"), ((0.0,),), ((0.0,),), (5e9,))).hosts
    assert host == Host("a", (0, 1), memory_bytes_per_s=5e9)


def test_ranks_and_memory_stay_with_their_host() -> None:
    told = Readings(("b", "a", "b"), ((0.0, 1e8), (1e8, 0.0)), ((0.0, 1e-4), (1e-4, 0.0)), (5e9, 6e9))
    assert [(host.name, host.ranks, host.memory_bytes_per_s) for host in infer(told).hosts] == [
        ("b", (0, 2), 5e9),
        ("a", (1,), 6e9),
    ]


def test_capacities_are_not_pulled_down_by_slow_partners() -> None:
    up, down = capacities(readings([120e6, 120e6, 12e6, 6e6]))
    assert (up, down) == ([120e6, 120e6, 12e6, 6e6], [120e6, 120e6, 12e6, 6e6])


def test_a_crossing_seen_from_the_other_end() -> None:
    assert Crossing((0, 1), 1.0, 2.0, 3.0, 4.0).turned((2, 3)) == Crossing((2, 3), 2.0, 1.0, 4.0, 3.0)
