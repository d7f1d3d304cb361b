"""The equations of a step."""

from __future__ import annotations

import pytest

from collectives.topology import Topology
from launcher.planning.forecast import (
    BUCKET_BYTES,
    Demand,
    RankPace,
    at_best,
    exposed,
    forecast,
    num_buckets_of,
    shares_of,
)

TWO = Topology.from_hosts(["a", "b"])


@pytest.mark.parametrize(
    ("communication_s", "compute_s", "buckets", "seconds"),
    [
        (1.0, 0.0, 4, 1.0),  # nothing to hide behind
        (1.0, 3.0, 1, 1.0),  # one bucket is ready when backward ends
        (1.0, 3.0, 4, 0.25),  # all but the last bucket hides
        (4.0, 3.0, 4, 2.5),  # 4 - 2 x 3/4
        (0.0, 3.0, 4, 0.0),
    ],
)
def test_what_backward_hides(communication_s: float, compute_s: float, buckets: int, seconds: float) -> None:
    assert exposed(communication_s, compute_s, buckets) == pytest.approx(seconds)


@pytest.mark.parametrize(("size", "count"), [(0, 1), (1, 1), (BUCKET_BYTES, 1), (BUCKET_BYTES + 1, 2)])
def test_buckets(size: float, count: int) -> None:
    assert num_buckets_of(size) == count


@pytest.mark.parametrize(
    ("batch", "paces", "shares"),
    [
        (12, [(2, None), (1, None)], [8, 4]),
        (12, [(2, 6), (1, None)], [6, 6]),
        (12, [(2, 6), (1, 6)], [6, 6]),
        (12, [(2, 6), (1, 5)], None),
        (2, [(9, None), (1, None)], [1, 1]),
        (1, [(9, None), (1, None)], None),
        (100, [(8, 10), (4, 20), (1, None)], [10, 20, 70]),
    ],
)
def test_shares_go_by_speed_up_to_what_memory_holds(
    batch: int, paces: list[tuple[float, int | None]], shares: list[int] | None
) -> None:
    assert shares_of(Demand(batch, None), [RankPace(*pace) for pace in paces]) == shares


def test_a_step_is_compute_and_what_is_not_hidden() -> None:
    demand = Demand(30, 1e8, other_s=0.1)
    found = forecast(demand, [RankPace(10.0), RankPace(20.0)], TWO)
    assert found is not None
    assert found.shares == (10, 20)
    assert found.compute_s == pytest.approx(1.0)
    assert found.communication_s == pytest.approx(0.8, rel=0.02)  # 100 MB over 125 MB/s, each way at once
    assert found.exposed_s == pytest.approx(exposed(found.communication_s or 0, 1.0, 4))
    assert found.step_s == pytest.approx(1.1 + found.exposed_s)
    assert found.throughput == pytest.approx(30 / found.step_s)
    assert found.bottleneck == "up of a"
    assert found.throughput <= at_best(demand, [RankPace(10.0), RankPace(20.0)], TWO)


def test_auto_takes_the_mildest_codec_that_hides() -> None:
    paces = [RankPace(10.0), RankPace(20.0)]
    assert [
        found.codec if (found := forecast(Demand(batch, 1e8, "auto"), paces, TWO)) else None
        for batch in (300, 30, 12, 3)
    ] == ["none", "bf16", "int8", "int4"]


def test_without_seconds_ranks_are_only_compared() -> None:
    found = forecast(Demand(None, 1e8, in_seconds=False), [RankPace(10.0), RankPace(20.0)], TWO)
    assert found is not None
    assert (found.shares, found.exposed_s, found.throughput) == ((1.0, 1.0), 0.0, 20.0)
    assert found.communication_s is not None
