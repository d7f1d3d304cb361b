"""Topologies: who is where, which links a route crosses, JSON in and out, and mistakes refused with their place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collectives.errors import PlanError
from collectives.topology import MEMORY_LATENCY_S, Host, Pair, Site, Topology

FARM = Topology(
    hosts=(
        Host("c", (4,), up_bytes_per_s=1e6, latency_s=300e-6),
        Host("a", (2, 0)),
        Host("b", (1, 3), down_bytes_per_s=2e6, memory_bytes_per_s=3e9),
    ),
    sites=(Site("town", ("a", "b"), 5e6, 6e6, latency_s=1e-3),),
    pairs=(Pair("a", "b", 4e6),),
)


def test_hosts_come_in_order_of_their_lowest_rank() -> None:
    assert [host.name for host in FARM.hosts] == ["a", "b", "c"]
    assert FARM.hosts[0].ranks == (0, 2)
    assert [FARM.host_index(rank) for rank in range(5)] == [0, 1, 0, 1, 2]
    assert FARM.host_of(3).name == "b"
    assert FARM.site_groups == ((0, 1), (2,))
    assert [site and site.name for site in map(FARM.site_of, range(3))] == ["town", "town", None]


def test_from_hosts() -> None:
    topology = Topology.from_hosts(["b", "a", "b"])
    assert topology.hosts == (Host("b", (0, 2)), Host("a", (1,)))
    assert topology.size == 3


def test_narrow_links_are_those_below_half_of_the_fastest_hosts() -> None:
    topology = Topology(
        (Host("a", (0,), 100.0, 100.0), Host("b", (1,), 49.0, 50.0), Host("c", (2,), 100.0, 100.0)),
        (Site("x", ("a", "b"), 99.0, 100.0),),
        (Pair("b", "c", 49.0),),
    )
    narrow = [link.name for link, is_narrow in zip(topology.links, topology.is_narrow, strict=True) if is_narrow]
    assert narrow == ["up of b", "up of site x", "b to c"]
    assert topology.narrow_between.tolist() == [[False, True, True], [True, False, True], [True, True, False]]
    assert not any(Topology.from_hosts("abc").is_narrow)
    dead = Topology(tuple(Host(name, (i,)) for i, name in enumerate("abc")), pairs=(Pair("a", "b", 0.0),))
    assert not dead.narrow_between.any()


def test_seated_keeps_the_links_and_takes_other_ranks() -> None:
    seated = FARM.seated(["c", "b", "a", "a"])
    c, b, a = seated.hosts
    assert (c, b, a) == (
        Host("c", (0,), up_bytes_per_s=1e6, latency_s=300e-6),
        Host("b", (1,), down_bytes_per_s=2e6, memory_bytes_per_s=3e9),
        Host("a", (2, 3)),
    )
    assert (seated.sites, seated.pairs) == (FARM.sites, FARM.pairs)
    assert FARM.seated([FARM.host_of(rank).name for rank in range(FARM.size)]) == FARM


def test_seated_drops_hosts_that_are_not_named() -> None:
    without_a = FARM.seated("bc")
    assert [host.name for host in without_a.hosts] == ["b", "c"]
    assert without_a.sites == (Site("town", ("b",), 5e6, 6e6, latency_s=1e-3),)
    assert without_a.pairs == ()
    assert FARM.seated("cc") == Topology((Host("c", (0, 1), up_bytes_per_s=1e6, latency_s=300e-6),))


def test_seated_refuses_a_host_that_it_does_not_know() -> None:
    with pytest.raises(PlanError, match="rank 1: no host is called 'x'"):
        FARM.seated("ax")
    with pytest.raises(PlanError, match="rank 0: no host is called 'hostb'; did you mean 'hostB'"):
        Topology.from_hosts(["hostA", "hostB"]).seated(["hostb"])


@pytest.mark.parametrize(
    ("source", "target", "crossed"),
    [
        (0, 2, ["memory of a"]),
        (0, 1, ["up of a", "down of b", "a to b"]),
        (1, 0, ["up of b", "down of a"]),
        (0, 4, ["up of a", "down of c", "up of site town"]),
        (4, 3, ["up of c", "down of b", "down of site town"]),
    ],
)
def test_route(source: int, target: int, crossed: list[str]) -> None:
    assert [FARM.links[link].name for link in FARM.route(source, target)] == crossed


def test_latency_is_the_mean_of_the_hosts_and_the_sites_on_top() -> None:
    assert FARM.latency_s(0, 2) == MEMORY_LATENCY_S
    assert FARM.latency_s(0, 1) == pytest.approx(100e-6)
    assert FARM.latency_s(0, 4) == FARM.latency_s(4, 0) == pytest.approx(200e-6 + 1e-3)


@pytest.mark.parametrize("topology", [FARM, Topology.from_hosts("abba"), Topology.from_hosts("x")])
def test_json_round_trip(topology: Topology, tmp_path: Path) -> None:
    path = tmp_path / "topology.json"
    path.write_text(topology.to_json())
    assert Topology.load(path) == topology
    assert Topology.load(path).fingerprint() == topology.fingerprint()


def test_json_defaults() -> None:
    assert Topology.from_json('{"hosts": [{"name": "a", "ranks": [0]}]}') == Topology.from_hosts("a")


def test_fingerprint_sees_values_not_noise() -> None:
    def rated(bytes_per_s: float) -> int:
        return Topology((Host("a", (0,), up_bytes_per_s=bytes_per_s), Host("b", (1,)))).fingerprint()

    assert rated(1e8) == rated(1e8 * (1 + 1e-9)) == rated(100_000_000)
    assert rated(1e8) != rated(1.001e8)
    assert Topology.from_hosts("aab").fingerprint() != Topology.from_hosts("aba").fingerprint()
    assert 0 <= FARM.fingerprint() < 2**32


def host(**changes: object) -> dict[str, object]:
    return {"name": "a", "ranks": [0], **changes}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "the file: got []; wanted an object"),
        ({}, "the file: 'hosts' is missing"),
        ({"hosts": []}, "hosts: rank 0 is missing"),
        ({"hosts": {}}, "hosts: got {}; wanted a list of objects"),
        ({"hosts": [7]}, "hosts[0]: got 7; wanted an object"),
        ({"hosts": [host()], "site": []}, "the file: 'site' is unknown; did you mean 'sites'?"),
        ({"hosts": [host(up_bytes_per_sec=1)]}, "hosts[0]: 'up_bytes_per_sec' is unknown; did you mean 'up_"),
        ({"hosts": [{"name": "a"}]}, "hosts[0]: 'ranks' is missing"),
        ({"hosts": [host(ranks=0)]}, "hosts[0].ranks: got 0; wanted a list of whole numbers"),
        ({"hosts": [host(ranks=[0.5])]}, "hosts[0].ranks: got [0.5]; wanted a list of whole numbers"),
        ({"hosts": [host(ranks=[True])]}, "hosts[0].ranks: got [true]; wanted a list of whole numbers"),
        ({"hosts": [host(ranks=[])]}, "hosts[0].ranks ('a'): got none; wanted at least one rank"),
        ({"hosts": [host(up_bytes_per_s="1G")]}, 'hosts[0].up_bytes_per_s: got "1G"; wanted a number'),
        ({"hosts": [host(up_bytes_per_s=-1)]}, "hosts[0].up_bytes_per_s: got -1; wanted more than 0"),
        ({"hosts": [host(down_bytes_per_s=0)]}, "hosts[0].down_bytes_per_s: got 0; wanted more than 0"),
        ({"hosts": [host(latency_s=-1e-3)]}, "hosts[0].latency_s: got -0.001; wanted at least 0"),
        ({"hosts": [host(memory_bytes_per_s=float("inf"))]}, "hosts[0].memory_bytes_per_s: got inf; wanted"),
        ({"hosts": [host(name="")]}, "hosts[0].name: got ''; wanted a name"),
        ({"hosts": [host(), host(ranks=[1])]}, "hosts[1].name: got 'a' a second time"),
        ({"hosts": [host(), host(name="b")]}, "hosts[1].ranks ('b'): rank 0 is on 'a' already"),
        ({"hosts": [host(ranks=[0, 0])]}, "hosts[0].ranks ('a'): rank 0 is on 'a' already"),
        ({"hosts": [host(ranks=[0, 2])]}, "hosts: rank 1 is missing; wanted every rank from 0 to 2 once"),
        ({"hosts": [host(ranks=[-1, 0])]}, "hosts: got rank -1 on 'a'; ranks start at 0"),
        ({"hosts": [host(name="alpha")], "pairs": [{"source": "alpha", "target": "alpa", "bytes_per_s": 1}]},
         "pairs[0].target: no host is called 'alpa'; did you mean 'alpha'?"),
        ({"hosts": [host(), host(name="b", ranks=[1])], "pairs": [{"source": "a", "target": "b", "bytes_per_s": -1}]},
         "pairs[0].bytes_per_s: got -1; wanted at least 0"),
        ({"hosts": [host()], "pairs": [{"source": "a", "target": "a", "bytes_per_s": 1}]},
         "pairs[0]: source and target are both 'a'"),
        ({"hosts": [host()], "pairs": [{"source": "a", "target": "a"}]}, "pairs[0]: 'bytes_per_s' is missing"),
        ({"hosts": [host()], "sites": [{"name": "s", "hosts": ["b"], "up_bytes_per_s": 1, "down_bytes_per_s": 1}]},
         "sites[0].hosts ('s'): no host is called 'b'"),
        ({"hosts": [host()], "sites": [{"name": "s", "hosts": ["a", "a"], "up_bytes_per_s": 1, "down_bytes_per_s": 1}]},
         "sites[0].hosts ('s'): host 'a' is in site 's' already"),
        ({"hosts": [host()], "sites": [{"name": "s", "hosts": ["a"], "up_bytes_per_s": 0, "down_bytes_per_s": 1}]},
         "sites[0].up_bytes_per_s: got 0; wanted more than 0"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_with_their_place(document: object, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        Topology.from_json(json.dumps(document), "farm.json")
    assert f"farm.json: {message}" in str(caught.value)


def test_broken_json_is_refused_with_line_and_column() -> None:
    with pytest.raises(PlanError, match=r"farm\.json, line 2, column 3: not JSON"):
        Topology.from_json("{\n  hosts: []}", "farm.json")


def test_pair_given_twice_is_refused() -> None:
    with pytest.raises(PlanError, match=r"pairs\[1\]: 'a' to 'b' is given twice"):
        Topology((Host("a", (0,)), Host("b", (1,))), pairs=(Pair("a", "b", 1.0), Pair("a", "b", 2.0)))


@pytest.mark.parametrize(
    ("dead", "said"),
    [
        ([("a", "c"), ("b", "c"), ("c", "a"), ("c", "b")], "no path leads from host 'a' to host 'c'"),
        ([("a", "c"), ("b", "c")], "no path leads from host 'a' to host 'c'"),
        ([("c", "a"), ("c", "b")], "no path leads from host 'c' to host 'a'"),
    ],
)
def test_hosts_that_cannot_be_reached_are_refused(dead: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Topology(
            tuple(Host(name, (rank,)) for rank, name in enumerate("abc")), pairs=tuple(Pair(a, b, 0.0) for a, b in dead)
        )


def test_a_way_through_others_is_enough() -> None:
    hosts = tuple(Host(name, (rank,)) for rank, name in enumerate("abc"))
    Topology(hosts, pairs=(Pair("a", "c", 0.0), Pair("c", "a", 0.0)))
