"""Predicted seconds of a training step: equations with units, no I/O.

For ranks r with share_r samples of the global batch B, and G bytes of gradient:

    (1) compute_s   = max_r share_r / samples_per_s_r       forward and backward of the slowest rank
    (2) backward_s  = BACKWARD compute_s                    assumed: backward costs twice what forward does
    (3) num_buckets = ceil(G / BUCKET_BYTES)                as DDP packs gradients
    (4) communication_s = sum over buckets of the plan's predicted seconds, with the codec's bytes
    (5) exposed_s   = max(communication_s / num_buckets,
                          communication_s - backward_s (1 - 1 / num_buckets))
    (6) step_s      = compute_s + exposed_s + other_s
    (7) samples_per_s = B / step_s

(5): the first bucket is ready when 1 / num_buckets of backward is done, and from then on communication hides behind the
rest of it; the last bucket is ready when backward ends, so at least its own time is seen. other_s, for optimizer and
data loading, is known from earlier runs only, else 0. Copies between accelerator and main memory are not in it.

samples_per_s_r is taken from the last run of the same job, else it is flops_per_s times the efficiency that the job
states, over flops_per_sample. In a search (4) is replaced by `cost.bound_s` times G, below which no plan can be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from collectives.planning.cost import bound_s
from collectives.planning.plan import Plan
from collectives.planning.planner import plan, with_codec
from collectives.schedule.codec import CODECS, Codec, codec_of
from collectives.topology import Topology
from collectives.training.apportion import apportion
from collectives.training.auto_codec import choose

BACKWARD = 2 / 3
BUCKET_BYTES = 25 * 2**20
"""DDP's own default, bucket_cap_mb=25."""


@dataclass(frozen=True)
class Demand:
    """What a step asks for.

    Attributes:
        global_batch: samples; None if the script decides, with equal batches on all ranks.
        gradient_bytes: summed over the ranks; None if unknown.
        codec: of `collectives.schedule.codec`, or "auto".
        in_seconds: whether the ranks' speeds are samples per second; otherwise they only compare ranks.
        other_s: seconds of a step besides forward, backward and communication.
        rank_samples: of each rank where the script decides: by the last run, else 1 to compare ranks by.
    """

    global_batch: int | None
    gradient_bytes: float | None
    codec: str = "none"
    in_seconds: bool = True
    other_s: float = 0.0
    rank_samples: float = 1.0


@dataclass(frozen=True)
class RankPace:
    """One rank: samples per second, and the most samples that its memory holds (None: no limit known)."""

    samples_per_s: float
    most_samples: int | None = None


@dataclass(frozen=True)
class Forecast:
    """What a step takes. `throughput` is in samples per second; without seconds, it only compares placements.

    Attributes:
        shares: samples of each rank; without a global batch, parts of one that are all equal.
        communication_s: all of it, hidden or not; None if unknown.
        exposed_s: the part that nothing hides.
        codec: what carries the gradients; of "auto" the one that it would take.
        bound_s: of communication: no plan is faster. None if no link is crossed or nothing is known.
        bottleneck: the link that limits communication.
        plan: of a bucket's all-reduce; None for a single rank or a search.
    """

    shares: tuple[float, ...]
    compute_s: float
    other_s: float
    communication_s: float | None
    exposed_s: float
    codec: str
    throughput: float
    bound_s: float | None
    bottleneck: str | None
    plan: Plan | None

    @property
    def step_s(self) -> float:
        """(6)"""
        return self.compute_s + self.exposed_s + self.other_s

    @property
    def best_step_s(self) -> float:
        """(6) with communication at its bound."""
        buckets = num_buckets_of(self.plan.num_bytes if self.plan else 0)
        return self.compute_s + self.other_s + exposed(self.bound_s or 0.0, self.compute_s, buckets)


def num_buckets_of(gradient_bytes: float) -> int:
    """(3)"""
    return max(1, math.ceil(gradient_bytes / BUCKET_BYTES))


def exposed(communication_s: float, compute_s: float, num_buckets: int) -> float:
    """(5)"""
    hidden = BACKWARD * compute_s * (1 - 1 / num_buckets)
    return max(communication_s / num_buckets, communication_s - hidden)


def shares_of(demand: Demand, paces: Sequence[RankPace]) -> list[int] | None:
    """Samples of each rank in proportion to its speed, no more than its memory holds; None if they do not fit.

    Those that are full keep what they hold, and the rest is shared out among the others again.
    """
    assert demand.global_batch is not None
    left, open_ranks = demand.global_batch, list(range(len(paces)))
    shares = [0] * len(paces)
    while open_ranks:
        if left < len(open_ranks):
            return None
        found = apportion(left, [paces[rank].samples_per_s for rank in open_ranks])
        full = [
            rank
            for rank, share in zip(open_ranks, found, strict=True)
            if (most := paces[rank].most_samples) is not None and share > most
        ]
        if not full:
            for rank, share in zip(open_ranks, found, strict=True):
                shares[rank] = share
            return shares
        for rank in full:
            shares[rank] = paces[rank].most_samples or 0
            left -= shares[rank]
        open_ranks = [rank for rank in open_ranks if rank not in full]
    return shares if left == 0 else None


def equal_shares(demand: Demand, count: int) -> list[float]:
    """The global batch in equal parts, or as many samples for each rank as the script takes."""
    return [demand.rank_samples] * count if demand.global_batch is None else [demand.global_batch / count] * count


def compute_of(shares: Sequence[float], paces: Sequence[RankPace]) -> float:
    """(1)"""
    return max(share / pace.samples_per_s for share, pace in zip(shares, paces, strict=True))


def at_best(demand: Demand, paces: Sequence[RankPace], topology: Topology) -> float:
    """The throughput that no plan can exceed: (7) with communication at its bound. 0 if the batch does not fit."""
    shares = _shares(demand, paces)
    if shares is None:
        return 0.0
    compute_s = compute_of(shares, paces)
    if not demand.in_seconds or demand.gradient_bytes is None:
        return sum(shares) / compute_s
    per_byte = bound_s(topology, "all_reduce", 1) or 0.0
    codecs = CODECS if demand.codec == "auto" else [demand.codec]
    buckets = num_buckets_of(demand.gradient_bytes)
    seen = min(exposed(per_byte * demand.gradient_bytes / _codec(codec).ratio, compute_s, buckets) for codec in codecs)
    return sum(shares) / (compute_s + seen + demand.other_s)


def forecast(
    demand: Demand, paces: Sequence[RankPace], topology: Topology, shares: Sequence[float] | None = None
) -> Forecast | None:
    """All of the above for the ranks in their order; None if the batch does not fit.

    Args:
        topology: of these ranks.
        shares: instead of those by speed and memory.
    """
    chosen = _shares(demand, paces) if shares is None else shares
    if chosen is None:
        return None
    compute_s = compute_of(chosen, paces)
    other_s = demand.other_s if demand.in_seconds else 0.0
    found = Forecast(
        tuple(chosen),
        compute_s,
        other_s,
        None,
        0.0,
        demand.codec,
        sum(chosen) / (compute_s + other_s),
        None,
        None,
        None,
    )
    if demand.gradient_bytes is None:
        return found
    if topology.size == 1:
        return replace(found, communication_s=0.0)
    whole = plan(topology, "all_reduce", round(demand.gradient_bytes))
    buckets = num_buckets_of(demand.gradient_bytes)
    codec = _codec_for(demand, whole, compute_s if demand.in_seconds else math.inf)
    coded = with_codec(whole, _codec(codec).name)
    communication_s = communication(topology, demand.gradient_bytes, codec)
    exposed_s = exposed(communication_s, compute_s, buckets) if demand.in_seconds else 0.0
    return replace(
        found,
        communication_s=communication_s,
        exposed_s=exposed_s,
        codec=codec,
        throughput=sum(chosen) / (compute_s + exposed_s + other_s),
        bound_s=coded.bound_s,
        bottleneck=coded.bottleneck,
        plan=coded,
    )


def communication(topology: Topology, gradient_bytes: float, codec: str) -> float:
    """(4) in seconds."""
    full, rest = divmod(round(gradient_bytes), BUCKET_BYTES)
    parts = [(full, BUCKET_BYTES), (1, rest)]
    return sum(
        count * plan(topology, "all_reduce", size, codec=_codec(codec).name).predicted_s
        for count, size in parts
        if count and size
    )


def _shares(demand: Demand, paces: Sequence[RankPace]) -> Sequence[float] | None:
    if demand.global_batch is None:
        return equal_shares(demand, len(paces))
    return shares_of(demand, paces)


def _codec_for(demand: Demand, whole: Plan, compute_s: float) -> str:
    """What "auto" would take, as `collectives.attach` does."""
    if demand.codec != "auto":
        return demand.codec
    return choose(
        whole.codecs, [whole.num_bytes], BACKWARD * compute_s, lambda _, codec: with_codec(whole, codec).predicted_s
    ).codec


def _codec(name: str) -> Codec:
    """Low rank has no fixed ratio, so it is counted as no codec at all."""
    return codec_of("none" if name == "low-rank" else name)
