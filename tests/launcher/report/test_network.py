"""The network and its drawing: loads, who limits, nothing outside the picture, nothing on top of another."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import pytest

from collectives.planning.planner import plan
from collectives.topology import Host, Topology
from launcher.report.diagram import Box, Drawing, draw, ranks_text
from launcher.report.network import MAX_HOSTS_IN_MATRIX, Network, network
from tests.launcher.report.made import seats, topology


def planned(links: Topology) -> Network:
    made = network([], plan(links, "all_reduce", 25_000_000).summary())
    assert made is not None
    return made


def test_loads_are_those_of_the_plan() -> None:
    links = Topology((Host("a", (0,), 100e6, 100e6), Host("b", (1,), 100e6, 10e6), Host("c", (2,), 100e6, 100e6)))
    made = planned(links)
    found = {link.name: link for link in made.links}
    assert found["down of b"].bottleneck
    assert found["down of b"].load == pytest.approx(1, abs=0.01)
    assert found["up of a"].load is not None
    assert 0 < found["up of a"].load < 0.5
    assert not found["up of a"].bottleneck
    assert [host.ranks for host in made.hosts] == [(0,), (1,), (2,)]


def test_equal_links_limit_together() -> None:
    made = planned(Topology.from_hosts("abcd"))
    assert all(link.bottleneck for link in made.outer_links)


def test_without_a_plan_the_hosts_are_known_all_the_same() -> None:
    made = network([asdict(seat) for seat in seats(4, 2)], None)
    assert made is not None
    assert [(host.name, host.ranks, host.up) for host in made.hosts] == [
        ("box-0", (0, 1), None),
        ("box-1", (2, 3), None),
    ]
    assert draw(made, 2).wires[0].label == "up"
    assert network([], None) is None


def test_few_hosts_get_a_matrix_of_slower_pairs_and_many_a_list() -> None:
    few = planned(topology(4, 4, pairs=True))
    assert few.matrix is not None
    cells = [link.name for _, row in few.matrix for link in row if link]
    assert (cells, few.busiest_pairs) == (["box-0 to box-1", "box-0 to box-2", "box-0 to box-3"], [])
    many = planned(topology(MAX_HOSTS_IN_MATRIX + 4, MAX_HOSTS_IN_MATRIX + 4, pairs=True))
    assert many.matrix is None
    assert len(many.busiest_pairs) == 12


def overlap(a: Box, b: Box) -> bool:
    return a.x < b.x + b.width and b.x < a.x + a.width and a.y < b.y + b.height and b.y < a.y + a.height


def check_tidy(drawing: Drawing) -> None:
    for box in drawing.boxes:
        assert box.x >= 0
        assert box.x + box.width <= drawing.width
        assert box.y >= 0
        assert box.y + box.height <= drawing.height
    assert not [pair for pair in itertools.combinations(drawing.boxes, 2) if overlap(*pair)]
    for frame in drawing.frames:
        assert frame.x >= 0
        assert frame.x + frame.width <= drawing.width
        assert frame.y + frame.height <= drawing.height
    for wire in drawing.wires:
        assert min(wire.x1, wire.x2) >= 0
        assert max(wire.x1, wire.x2) <= drawing.width
        assert abs(wire.x1 - wire.x2) > 10
        assert 0 < wire.y < drawing.height
        assert 2 <= wire.thickness <= 9
        left, right = wire.label_x - 3.4 * len(wire.label), wire.label_x + 3.4 * len(wire.label)
        assert left >= 0, wire
        assert right <= drawing.width, wire


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("sites", [False, True])
@pytest.mark.parametrize(("hosts", "ranks"), [(1, 4), (2, 2), (3, 7), (8, 8), (64, 64)])
def test_drawings_are_tidy(hosts: int, ranks: int, sites: bool, columns: int) -> None:
    if sites and hosts < 2:
        pytest.skip("a site is of several hosts")
    made = planned(topology(hosts, ranks, sites=sites))
    drawing = draw(made, columns)
    check_tidy(drawing)
    assert len(drawing.boxes) == hosts
    assert len(drawing.frames) == (2 if sites else 0)
    assert len(drawing.wires) == (2 * hosts + 4 * sites if hosts > 1 else 0)
    assert drawing.height < 120 * (hosts + 2) / columns + 200


def test_long_names_are_cut() -> None:
    (box,) = draw(planned(Topology((Host("a" * 60, (0, 1)),))), 1).boxes
    assert box.title.endswith("…")
    assert len(box.title) < 25


@pytest.mark.parametrize(
    ("ranks", "text"), [([3], "rank 3"), ([0, 1, 2], "ranks 0-2"), ([0, 2, 3, 8], "ranks 0, 2-3, 8")]
)
def test_ranks_in_words(ranks: list[int], text: str) -> None:
    assert ranks_text(ranks) == text
