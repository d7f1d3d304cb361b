"""Plans against known optima, against brute force, and as all ranks must have them: equal, plain and cheap."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from collectives.errors import PlanError, UsageError
from collectives.planning.cost import Passage, cost
from collectives.planning.linear_program import cheapest_arborescence
from collectives.planning.plan import MAX_CLASS, MIN_CLASS, Plan, size_class
from collectives.planning.planner import plan, with_codec
from collectives.schedule.algorithms import candidates
from collectives.schedule.forest import Forest
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.schedule.tree import Tree
from collectives.schedule.verify import verify
from collectives.topology import Host, Pair, Site, Topology

LARGE = 25_000_000


def switched(*rates: float) -> Topology:
    return Topology(tuple(Host(f"h{rank}", (rank,), rate, rate) for rank, rate in enumerate(rates)))


def root_for(collective: str) -> int | None:
    return 0 if SPECIFICATIONS[collective].rooted else None


@pytest.mark.parametrize(
    ("num_bytes", "kind"),
    [
        (0, 5),
        (1, 5),
        (1024, 5),
        (1025, 6),
        (4096, 6),
        (4097, 7),
        (LARGE, 13),
        (4**13, 13),
        (4**13 + 1, 13),
        (10**12, 13),
    ],
)
def test_size_class(num_bytes: int, kind: int) -> None:
    assert size_class(num_bytes) == kind
    assert MIN_CLASS <= kind <= MAX_CLASS


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 16])
def test_equal_hosts_get_the_direct_forest_with_equal_shares(size: int) -> None:
    made = plan(switched(*[125e6] * size), "all_reduce", LARGE)
    assert made.algorithm == "direct"
    assert made.forest.trees == tuple(Tree.star(root, range(size)) for root in range(size))
    assert made.forest.shares == (1 / size,) * size
    assert made.bound_s == pytest.approx(2 * (size - 1) / size * LARGE / 125e6)
    assert made.predicted_s == pytest.approx(made.bound_s, rel=0.01)


def test_three_fast_hosts_and_a_slow_one_reach_the_optimum() -> None:
    made = plan(switched(125e6, 125e6, 125e6, 12.5e6), "all_reduce", LARGE)
    assert made.bound_s == pytest.approx(LARGE / 12.5e6)
    assert LARGE * cost(made.topology, made.forest).s_per_byte == pytest.approx(made.bound_s, rel=0.001)
    assert made.predicted_s == pytest.approx(made.bound_s, rel=0.015)
    assert made.algorithm == "direct, planned shares"
    assert made.forest.shares == pytest.approx((1 / 3,) * 3, abs=1e-5)
    assert {tree.root for tree in made.forest.trees} == {0, 1, 2}
    assert made.bottleneck in ("up of h3", "down of h3")
    assert dict(made.options)["ring"] > 1.48 * made.predicted_s


@pytest.mark.parametrize("seed", range(20))
def test_hosts_behind_one_switch_reach_the_optimum(seed: int) -> None:
    rng = random.Random(seed)
    rates = [rng.choice([10e6, 50e6, 125e6, 312e6, 1250e6]) * rng.uniform(0.8, 1) for _ in range(rng.randint(2, 9))]
    made = plan(switched(*rates), "all_reduce", 4**13)
    assert made.predicted_s == pytest.approx(made.bound_s, rel=0.015)
    assert made.bound_s == pytest.approx(4**13 * max(1 / min(rates), 2 * (len(rates) - 1) / sum(rates)))


@pytest.mark.parametrize("names", ["aaaabbbb", "aabbccdd", "aaaabbcd"])
def test_hosts_with_several_ranks_reach_the_bound_of_their_hosts(names: str) -> None:
    made = plan(Topology.from_hosts(names), "all_reduce", 4**13)
    assert made.algorithm.startswith("hierarchical")
    assert made.predicted_s == pytest.approx(made.bound_s, rel=0.015)


@pytest.mark.parametrize("collective", ["reduce_scatter", "all_gather", "broadcast", "reduce", "all_to_all"])
def test_other_collectives_reach_their_bound_on_equal_hosts(collective: Collective) -> None:
    made = plan(switched(*[125e6] * 5), collective, 4**13, root_for(collective))
    assert made.predicted_s == pytest.approx(made.bound_s, rel=0.015)


def test_sites_send_one_copy_over_the_trunk() -> None:
    hosts = tuple(Host(name, (rank,)) for rank, name in enumerate("abcdef"))
    sites = (Site("s", ("a", "b", "c"), 12.5e6, 12.5e6), Site("t", ("d", "e", "f"), 12.5e6, 12.5e6))
    made = plan(Topology(hosts, sites), "all_reduce", 4**13)
    assert made.algorithm.startswith("hierarchical")
    assert made.predicted_s == pytest.approx(made.bound_s, rel=0.015)


def best_on_grid(topology: Topology, trees: list[Tree], steps: int) -> float:
    """Seconds per byte of the best shares that are multiples of 1/steps, by trying all."""
    capacity = [link.bytes_per_s for link in topology.links]
    loads = Passage(topology, "all_reduce", trees).loads.toarray().T
    best = float("inf")
    for cuts in itertools.combinations(range(steps + len(trees) - 1), len(trees) - 1):
        edges = [-1, *cuts, steps + len(trees) - 1]
        parts = [edges[i + 1] - edges[i] - 1 for i in range(len(trees))]
        busy = [0.0] * len(capacity)
        for part, crossed in zip(parts, loads, strict=True):
            for link, times in enumerate(crossed):
                busy[link] += part / steps * times / capacity[link]
        best = min(best, max(busy))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_shares_are_as_good_as_any_tried_by_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    rates = [(rng.uniform(10e6, 125e6), rng.uniform(10e6, 125e6)) for _ in range(3)]
    topology = Topology(tuple(Host(str(rank), (rank,), up, down) for rank, (up, down) in enumerate(rates)))
    trees = list(dict.fromkeys(itertools.chain(*candidates(topology, "all_reduce").values())))
    made = plan(topology, "all_reduce", 4**13)
    assert cost(topology, made.forest).s_per_byte <= best_on_grid(topology, trees, steps=12) * 1.01


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("collective", SPECIFICATIONS)
def test_random_plans_are_right(collective: Collective, seed: int) -> None:
    rng = random.Random(f"{collective} {seed}")
    bare = Topology.from_hosts([rng.choice("abcde") for _ in range(rng.randint(1, 10))])
    hosts = tuple(Host(h.name, h.ranks, rng.uniform(1e6, 2e8), rng.uniform(1e6, 2e8)) for h in bare.hosts)
    topology = Topology(hosts)
    root = rng.randrange(topology.size) if SPECIFICATIONS[collective].rooted else None
    made = plan(topology, collective, 10 ** rng.randint(0, 9), root)
    verify(made.forest)
    assert made.predicted_s >= (made.bound_s or 0) * (1 - 1e-9)
    assert Forest.parse(str(made.forest)) == made.forest
    json.dumps(made.summary())
    assert made.algorithm in made.explain()


@pytest.mark.parametrize("collective", SPECIFICATIONS)
def test_one_rank(collective: Collective) -> None:
    made = plan(Topology.from_hosts("a"), collective, LARGE, root_for(collective))
    assert made.forest == Forest(collective, 1, root_for(collective), (Tree(0, ()),), (1.0,))
    assert made.predicted_s == 0
    assert made.bound_s is None
    assert made.bottleneck is None
    made.explain()


def test_small_messages_take_few_messages() -> None:
    small, large = (plan(Topology.from_hosts("abcd"), "all_reduce", size) for size in (64, LARGE))
    assert (small.algorithm, large.algorithm) == ("shallow", "direct")


def test_one_forest_for_a_size_class() -> None:
    topology = switched(125e6, 100e6, 50e6)
    first, second = plan(topology, "all_reduce", 4**12 + 1), plan(topology, "all_reduce", 4**13)
    assert first.forest == second.forest
    assert first.fingerprint() == second.fingerprint()
    assert first.predicted_s < second.predicted_s


def test_the_choice_is_within_a_hundredth_of_the_best_for_the_class() -> None:
    for kind in range(MIN_CLASS, MAX_CLASS + 1):
        made = plan(switched(125e6, 100e6, 50e6), "all_reduce", 4**kind)
        assert made.predicted_s <= 1.01 * min(seconds for _, seconds in made.options)


def test_fingerprint_differs_with_the_plan() -> None:
    topology = switched(125e6, 100e6, 50e6)
    made = [
        plan(topology, "all_reduce", LARGE),
        plan(topology, "all_reduce", 2_000_000),
        plan(topology, "reduce_scatter", LARGE),
        plan(topology, "broadcast", LARGE, 0),
        plan(topology, "broadcast", LARGE, 1),
        plan(switched(125e6, 100e6, 51e6), "all_reduce", LARGE),
    ]
    assert len({one.fingerprint() for one in made}) == len(made)


def test_fingerprint_ignores_float_noise() -> None:
    noisy = switched(125e6 * (1 + 1e-12), 100e6 * (1 - 1e-12), 50e6)
    assert (
        plan(noisy, "all_reduce", LARGE).fingerprint()
        == plan(switched(125e6, 100e6, 50e6), "all_reduce", LARGE).fingerprint()
    )


def test_another_process_makes_the_same_plan() -> None:
    script = (
        "from collectives.planning.planner import plan; from collectives.topology import *;"
        "t = Topology(tuple(Host(f'h{i}', (i,), r, r) for i, r in enumerate([125e6, 100e6, 50e6, 12.5e6])));"
        "print(plan(t, 'all_reduce', 25_000_000).fingerprint())"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(printed) == plan(switched(125e6, 100e6, 50e6, 12.5e6), "all_reduce", LARGE).fingerprint()


def pairs_between(size: int, rate: float, chosen: object) -> tuple[Pair, ...]:
    return tuple(
        Pair(f"h{a}", f"h{b}", rate)
        for a in range(size)
        for b in range(size)
        if a != b and chosen(a, b)  # type: ignore[operator]
    )


def test_a_ring_where_only_neighbours_are_connected() -> None:
    apart = pairs_between(6, 0.0, lambda a, b: (a - b) % 6 not in (1, 5))
    made = plan(Topology(switched(*[125e6] * 6).hosts, pairs=apart), "all_reduce", LARGE)
    assert made.algorithm == "ring"
    assert "+inf" not in made.explain().split("compared")[0]


def test_planned_shares_get_round_a_slow_pair() -> None:
    slow = pairs_between(4, 5e6, lambda a, b: {a, b} == {0, 1})
    made = plan(Topology(switched(*[125e6] * 4).hosts, pairs=slow), "all_reduce", LARGE)
    assert made.predicted_s < 0.5 * dict(made.options)["direct"]


def test_planned_shares_leave_out_trees_that_a_dead_pair_cuts() -> None:
    """Of a triangle only the path 1 - 0 - 2 is left, which the star around 0 follows."""
    dead = pairs_between(3, 0.0, lambda a, b: {a, b} == {1, 2})
    made = plan(Topology(switched(1e8, 2e8, 3e8).hosts, pairs=dead), "all_reduce", LARGE)
    assert made.forest.trees == (Tree.star(0, range(3)),)
    assert made.predicted_s == pytest.approx(2 * LARGE / 1e8, rel=0.01)


def test_hosts_that_cannot_be_joined_are_refused() -> None:
    """Every host can be reached, but only one way round, and an all-reduce goes there and back."""
    apart = pairs_between(3, 0.0, lambda a, b: (b - a) % 3 == 1)
    one_way = Topology(switched(1e8, 1e8, 1e8).hosts, pairs=apart)
    with pytest.raises(PlanError, match="no algorithm joins them without crossing h0 to h1, h1 to h2, h2 to h0"):
        plan(one_way, "all_reduce", LARGE)
    assert plan(one_way, "broadcast", LARGE, 0).forest.trees == (Tree.path([0, 2, 1]),)


def sites(groups: list[int], trunk: float, rates: list[float] | None = None) -> Topology:
    hosts = switched(*(rates or [125e6] * sum(groups))).hosts
    names = iter(host.name for host in hosts)
    return Topology(hosts, tuple(
        Site(f"s{i}", tuple(itertools.islice(names, count)), trunk, trunk) for i, count in enumerate(groups)
    ))  # fmt: skip


def several(counts: list[int], **links: float) -> Topology:
    names = itertools.chain.from_iterable([f"h{i}"] * count for i, count in enumerate(counts))
    return Topology(tuple(Host(host.name, host.ranks, **links) for host in Topology.from_hosts([*names]).hosts))


def uneven(*rates: tuple[float, float]) -> Topology:
    return Topology(tuple(Host(f"h{rank}", (rank,), up, down) for rank, (up, down) in enumerate(rates)))


def chain(size: int) -> Topology:
    return Topology(switched(*[125e6] * size).hosts, pairs=pairs_between(size, 0.0, lambda a, b: abs(a - b) > 1))


def grid(side: int) -> Topology:
    def apart(a: int, b: int) -> bool:
        return abs(a // side - b // side) + abs(a % side - b % side) > 1

    return Topology(switched(*[125e6] * side**2).hosts, pairs=pairs_between(side**2, 0.0, apart))


def scattered(size: int, seed: int) -> Topology:
    rng = random.Random(seed)
    rates = {(a, b): rng.uniform(5e6, 125e6) for a in range(size) for b in range(size) if a != b}
    hosts = switched(*[125e6] * size).hosts
    return Topology(hosts, pairs=tuple(Pair(f"h{a}", f"h{b}", rate) for (a, b), rate in rates.items()))


FAST, SLOW = (125e6, 125e6), (12.5e6, 12.5e6)
HARD = {
    "two sites": sites([3, 3], 31e6),
    "two unequal sites": sites([4, 2], 31e6, [125e6, 60e6, 12e6, 125e6, 60e6, 125e6]),
    "three sites": sites([2, 3, 2], 31e6),
    "fast up, slow down": uneven(FAST, FAST, FAST, (125e6, 12.5e6)),
    "slow up, fast down": uneven(FAST, FAST, FAST, (12.5e6, 125e6)),
    "all uneven": uneven((125e6, 60e6), (60e6, 125e6), (30e6, 125e6), (125e6, 30e6)),
    "five mixed": switched(125e6, 62e6, 62e6, 31e6, 12.5e6),
    "one slow of many": uneven(*[FAST] * 11, SLOW),
    "four by two": several([2, 2, 2, 2]),
    "four, two, one": several([4, 2, 1]),
    "slow memory": several([4, 4], memory_bytes_per_s=60e6),
    "slow pair": Topology(
        switched(*[125e6] * 4).hosts, pairs=pairs_between(4, 5e6, lambda a, b: {a, b} == {0, 1})
    ),
    "chain": chain(5),
    "grid": grid(3),
    "scattered": scattered(6, 5),
}  # fmt: skip


@pytest.mark.parametrize("collective", ["all_reduce", "reduce", "broadcast", "reduce_scatter", "all_gather"])
@pytest.mark.parametrize("name", HARD)
def test_hard_topologies_reach_their_bound(name: str, collective: Collective) -> None:
    made = plan(HARD[name], collective, 4**13, root_for(collective))
    assert made.bound_s is not None
    assert 4**13 * cost(made.topology, made.forest).s_per_byte <= 1.02 * made.bound_s
    assert made.predicted_s >= made.bound_s * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_by_prices_is_below_every_forest(seed: int) -> None:
    """Of all the forests with two of a triangle's three paths, and so of all forests, there is none that is faster."""
    topology = scattered(3, seed)
    made = plan(topology, "all_reduce", 4**13)
    paths = [Tree.path(order) for order in ([0, 1, 2], [1, 0, 2], [0, 2, 1])]
    least = best_on_grid(topology, paths, steps=60)
    assert made.bound_s is not None
    assert made.bound_s <= 4**13 * least * (1 + 1e-9)
    assert 4**13 * cost(topology, made.forest).s_per_byte <= 1.01 * made.bound_s


@pytest.mark.parametrize("seed", range(30))
def test_cheapest_arborescence_is_the_cheapest_of_all(seed: int) -> None:
    rng = random.Random(seed)
    size = 2 + seed % 4
    weights = np.array([[rng.choice([1.0, 2.0, 5.0, rng.random()]) for _ in range(size)] for _ in range(size)])
    np.fill_diagonal(weights, np.inf)
    root = rng.randrange(size)
    others = [node for node in range(size) if node != root]

    def leads_home(parents: dict[int, int]) -> bool:
        for node in others:
            for _ in range(size):
                node = parents.get(node, root)
            if node != root:
                return False
        return True

    choices = itertools.product(range(size), repeat=len(others))
    every = [dict(zip(others, chosen, strict=True)) for chosen in choices]
    best = min(sum(weights[a, b] for a, b in parents.items()) for parents in every if leads_home(parents))
    found = cheapest_arborescence(weights, root)
    assert leads_home(found)
    assert sum(weights[a, b] for a, b in found.items()) == pytest.approx(best)


def test_all_to_all_has_no_other_forest() -> None:
    made = plan(HARD["slow pair"], "all_to_all", 4**13)
    assert made.bound_s == pytest.approx(4**13 / 4 / 5e6)
    with pytest.raises(PlanError, match="all_to_all of 5 ranks: no algorithm joins them without crossing h0 to h2"):
        plan(HARD["chain"], "all_to_all", 4**13)


@pytest.mark.parametrize("name", HARD)
def test_plans_read_back(name: str) -> None:
    for collective in SPECIFICATIONS:
        if collective == "all_to_all" and name in ("chain", "grid"):
            continue
        made = plan(HARD[name], collective, LARGE, root_for(collective))
        assert Plan.parse(made.to_text()) == made
        assert Plan.parse(made.to_text()).fingerprint() == made.fingerprint()


@pytest.mark.parametrize(
    ("old", "new", "said", "marked"),
    [
        ("num_bytes 25000000", "num_bytes many", "plan, line 2: num_bytes is 'many'", "many"),
        ("algorithm direct", "algorithms direct", "plan, line 4: got 'algorithms'; wanted each of", "algorithms"),
        ("bottleneck up of h0\n", "", "plan: the line 'bottleneck' is missing", ""),
        ("1>0", "1=0", "forest, line 24: got '1=0', wanted child>parent", "1=0"),
        ("1>0", "0>1", "tree 0: rank 0 is the root but has a parent, 1", "0>1"),
        ("1>0 2>0", "1>0", "tree 0: rank 2 is missing", "0"),
        ("all_reduce of 3 ranks", "allreduce of 3 ranks", "forest, line 23: wanted 'C of", "allreduce of 3 ranks"),
        ("forest\n", "tree\n", "plan: no section 'forest'", ""),
        ("plan\n", "plans\n", "plan, line 1: wanted the line 'plan' first", "plans"),
        ("\"up_bytes_per_s\": 125000000.0", "\"up_bytes_per_s\": -1", "hosts[0].up_bytes_per_s: got -1", ""),
        ("{\"name\": \"h0\"", "{name: \"h0\"", "plan, line 16, column 6: not JSON", ""),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_read_is_pointed_at(old: str, new: str, said: str, marked: str) -> None:
    text = plan(switched(125e6, 125e6, 125e6), "all_reduce", LARGE).to_text()
    assert old in text
    with pytest.raises(PlanError) as caught:
        Plan.parse(text.replace(old, new, 1))
    assert said in str(caught.value)
    if marked:
        _, line, arrow = str(caught.value).split("\n")
        assert line[arrow.index("^") : arrow.rindex("^") + 1] == marked


@pytest.mark.parametrize(
    ("collective", "root"), [("all_reduce", 0), ("broadcast", None), ("broadcast", 3), ("reduce", -1)]
)
def test_roots_are_checked(collective: Collective, root: int | None) -> None:
    with pytest.raises(PlanError, match=f"{collective} of 3 ranks: got root {root}"):
        plan(Topology.from_hosts("abc"), collective, LARGE, root)


@pytest.mark.parametrize("collective", ["all_reduce", "reduce_scatter", "broadcast", "all_to_all"])
@pytest.mark.measured
def test_64_ranks_are_planned_within_a_second(collective: Collective) -> None:
    topology = Topology(tuple(Host(f"h{rank}", (rank,), 1e8 + rank, 1e8 - rank) for rank in range(64)))
    start = time.process_time()
    plan(topology, collective, LARGE, root_for(collective))
    assert time.process_time() - start < 1


@pytest.mark.parametrize("collective", SPECIFICATIONS)
@pytest.mark.measured
def test_256_hosts_are_planned_within_five_seconds(collective: Collective) -> None:
    topology = Topology(tuple(Host(f"h{rank}", (rank,), 1e8 + rank, 1e8 - rank) for rank in range(256)))
    start = time.process_time()
    plan(topology, collective, LARGE, root_for(collective))
    assert time.process_time() - start < 5


def test_a_codec_shortens_what_crosses_the_network_only() -> None:
    far, near = (plan(Topology.from_hosts(hosts), "all_reduce", 25_000_000) for hosts in ("abcd", "aaaa"))
    assert with_codec(far, "none").predicted_s == far.predicted_s
    assert with_codec(far, "bf16").predicted_s == pytest.approx(far.predicted_s / 2, rel=0.01)
    assert with_codec(far, "int8").predicted_s == pytest.approx(far.predicted_s * 66 / 256, rel=0.02)
    assert with_codec(near, "int4").predicted_s == near.predicted_s
    with pytest.raises(UsageError, match="codec is 'int7'"):
        with_codec(far, "int7")


@pytest.mark.parametrize("codec", ["narrow-bf16", "narrow-int4"])
@pytest.mark.parametrize("rates", [(1000, 1000, 1000, 100), (250, 250, 250, 100), (1000, 1000, 400, 400)])
def test_a_codec_for_narrow_links_has_a_plan_of_its_own(codec: str, rates: tuple[float, ...]) -> None:
    topology = Topology(tuple(Host(f"h{i}", (i,), rate * 1e5, rate * 1e5) for i, rate in enumerate(rates)))
    plain = plan(topology, "all_reduce", LARGE)
    coded, everywhere = with_codec(plain, codec), with_codec(plain, codec.removeprefix("narrow-"))
    assert (coded.codec, coded.topology) == (codec, topology)
    assert coded.predicted_s <= cost(topology, plain.forest, codec).seconds(LARGE)
    everywhere_s_per_byte = cost(topology, everywhere.forest, everywhere.codec).s_per_byte
    assert everywhere_s_per_byte <= cost(topology, coded.forest, codec).s_per_byte * 1.001
    assert coded.predicted_s < plain.predicted_s
    assert coded.bound_s is not None
    assert coded.bound_s <= LARGE * cost(topology, coded.forest, codec).s_per_byte * 1.001 <= 1.02 * coded.bound_s
    assert dict(coded.options)[coded.algorithm] == coded.predicted_s
    assert Plan.parse(coded.to_text()) == coded
    assert coded.fingerprint() != plain.fingerprint()


def test_without_narrow_links_their_codecs_change_nothing() -> None:
    plain = plan(Topology.from_hosts("abc"), "all_reduce", LARGE)
    assert with_codec(plain, "narrow-int8") == plain
    assert plain.codecs == ("none", "bf16", "int8", "int4")


def test_the_summary_tells_links_and_shares() -> None:
    """What a drawing of the plan needs: each link that is crossed, and how long the message keeps it busy."""
    topology = Topology((Host("a", (0,), 100e6, 100e6), Host("b", (1,), 50e6, 100e6), Host("c", (2,), 100e6, 100e6)))
    made = plan(topology, "all_reduce", 100_000_000)
    told = made.summary()
    busiest = max(told["links"], key=lambda link: link["busy_s"])
    assert (busiest["name"], busiest["bytes_per_s"]) == (made.bottleneck, 50e6)
    assert busiest["busy_s"] == pytest.approx(made.predicted_s, rel=0.02)
    assert sum(share["share"] for share in told["shares"]) == pytest.approx(1)
    assert Topology.from_json(json.dumps(told["topology"])) == topology


def test_noise_in_latencies_of_a_local_network_does_not_choose_the_trees() -> None:
    """Where several shares are as fast, as with one slow host among fast ones, every run takes the same."""
    rates = [484e6, 176e6, 109e6, 231e6, 168e6, 523e6]
    draw = random.Random(0)
    shares = []
    for _ in range(10):
        hosts = tuple(
            Host(f"h{rank}", (rank,), rate / 8, rate / 8, latency_s=draw.uniform(30e-6, 150e-6))
            for rank, rate in enumerate(rates)
        )
        forest = plan(Topology(hosts), "all_reduce", 25_000_000).forest
        shares.append({tree.root: share for tree, share in zip(forest.trees, forest.shares, strict=True)})
    assert all(each.keys() == {0, 1, 3, 4, 5} for each in shares)
    for root in shares[0]:
        assert max(each[root] for each in shares) == pytest.approx(min(each[root] for each in shares), rel=1e-3)


def test_only_the_slowest_host_is_busy_all_the_time() -> None:
    """It takes as long as the slow host's links need, and the others have something to spare."""
    rates = [484e6, 176e6, 109e6, 231e6, 168e6, 523e6]
    hosts = tuple(Host(f"h{rank}", (rank,), rate / 8, rate / 8) for rank, rate in enumerate(rates))
    made = plan(Topology(hosts), "all_reduce", LARGE)
    assert made.bound_s is not None
    assert made.predicted_s < 1.02 * made.bound_s
    busy = {link["name"]: link["busy_s"] / made.bound_s for link in made.summary()["links"]}
    assert {name for name, part in busy.items() if part > 0.99} == {"up of h2", "down of h2"}
    assert max(part for name, part in busy.items() if not name.endswith("h2")) < 0.75
