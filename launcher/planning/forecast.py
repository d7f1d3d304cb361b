"""Predicted seconds of a training step: equations with units, no I/O.

For ranks r with share_r samples of the global batch B, and G bytes of gradient:

    (1) compute_s   = max_r share_r / samples_per_s_r       forward and backward of the slowest rank
    (2) backward_s  = BACKWARD compute_s                    assumed: backward takes twice the time of forward
    (3) num_buckets = ceil(G / BUCKET_BYTES)                as DDP packs gradients
    (4) communication_s = sum over buckets of the plan's predicted seconds, with the codec's bytes
    (5) exposed_s   = max(communication_s / num_buckets,
                          communication_s - backward_s (1 - 1 / num_buckets))
    (6) step_s      = compute_s + exposed_s + other_s
    (7) samples_per_s = B / step_s

(5): the first bucket is ready when 1 / num_buckets of the backward pass is done. From then on communication overlaps
with the rest of it. The last bucket is ready when the backward pass ends, so at least its own time is exposed. other_s,
for optimizer and data loading, is known from earlier runs only, else 0. Copies between accelerator and main memory are
not modelled.

samples_per_s_r comes from `pools`. In a search (4) is replaced by its lower bound, `cost.bound_s` of one byte times G.
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
"""Part of compute_s that is the backward pass: it computes gradients of inputs and of weights."""
BUCKET_BYTES = 25 * 2**20
"""DDP's own default, bucket_cap_mb=25."""


@dataclass(frozen=True)
class Demand:
    """What a step needs.

    Attributes:
        global_batch: samples; None if the script decides, with equal batches on all ranks.
        gradient_bytes: summed over the ranks; None if unknown.
        codec: of `collectives.schedule.codec`, or "auto".
        in_seconds: whether the ranks' speeds are samples per second; otherwise they only compare ranks.
        other_s: seconds of a step besides forward, backward and communication.
        rank_samples: samples of each rank per step where the script decides: as in the last run, else 1.
    """

    global_batch: int | None
    gradient_bytes: float | None
    codec: str = "none"
    in_seconds: bool = True
    other_s: float = 0.0
    rank_samples: float = 1.0


@dataclass(frozen=True)
class RankPace:
    """Speed of one rank: samples per second, and the most samples that its memory holds (None: no known limit)."""

    samples_per_s: float
    most_samples: int | None = None


@dataclass(frozen=True)
class Forecast:
    """Predicted times of a step. `throughput` is in samples per second; without seconds it only compares placements.

    Attributes:
        shares: samples of each rank; without a global batch, the samples that the script takes, the same for all.
        communication_s: of all buckets, whether or not computing hides it; None if unknown.
        exposed_s: the part of it that computing does not hide.
        codec: of the gradients; for "auto" the one that it would choose.
        bound_s: lower bound of communication_s over all plans; None if no link is used or nothing is known.
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
    """Samples of each rank in proportion to its speed, at most what its memory holds; None if they do not fit.

    Equal times for all ranks would be optimal. A rank whose share exceeds its memory gets what it holds, and the rest
    is shared among the others in proportion again, which may fill further ones. Every round fills at least one rank, so
    there are at most as many rounds as ranks.
    """
    assert demand.global_batch is not None
    left, open_ranks = demand.global_batch, list(range(len(paces)))
    shares = [0] * len(paces)
    while open_ranks:
        if left < len(open_ranks):  # a rank needs at least one sample
            return None
        found = apportion(left, [paces[rank].samples_per_s for rank in open_ranks])
        # Only those above their memory: a rank may still have exactly what it holds.
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
    """The global batch in equal parts; without one, the samples that the script takes on each rank."""
    return [demand.rank_samples] * count if demand.global_batch is None else [demand.global_batch / count] * count


def compute_of(shares: Sequence[float], paces: Sequence[RankPace]) -> float:
    """(1)"""
    return max(share / pace.samples_per_s for share, pace in zip(shares, paces, strict=True))


def at_best(demand: Demand, paces: Sequence[RankPace], topology: Topology) -> float:
    """Upper bound of the throughput over all plans: (7) with communication at its bound. 0 if the batch does not fit.

    (5) never falls as communication_s grows, so a lower bound of that gives an upper bound here.
    """
    shares = _shares(demand, paces)
    if shares is None:
        return 0.0
    compute_s = compute_of(shares, paces)
    if not demand.in_seconds or demand.gradient_bytes is None:
        return sum(shares) / compute_s
    # The bound of a collective is linear in its bytes, so one byte is enough, and a search asks for it very often.
    per_byte = bound_s(topology, "all_reduce", 1) or 0.0
    # The codec is chosen by a plan; without one, the fastest of all is the bound.
    codecs = CODECS if demand.codec == "auto" else [demand.codec]
    buckets = num_buckets_of(demand.gradient_bytes)
    exposed_s = min(
        exposed(per_byte * demand.gradient_bytes / _codec(codec).ratio, compute_s, buckets) for codec in codecs
    )
    return sum(shares) / (compute_s + exposed_s + demand.other_s)


def forecast(
    demand: Demand, paces: Sequence[RankPace], topology: Topology, shares: Sequence[float] | None = None
) -> Forecast | None:
    """All of the above for the ranks in their order; None if the batch does not fit.

    Args:
        topology: of these ranks.
        shares: samples of each rank, instead of shares by speed and memory.
    """
    chosen = _shares(demand, paces) if shares is None else shares
    if chosen is None:
        return None
    compute_s = compute_of(chosen, paces)
    other_s = demand.other_s if demand.in_seconds else 0.0
    without_communication = Forecast(
        shares=tuple(chosen),
        compute_s=compute_s,
        other_s=other_s,
        communication_s=None,
        exposed_s=0.0,
        codec=demand.codec,
        throughput=sum(chosen) / (compute_s + other_s),
        bound_s=None,
        bottleneck=None,
        plan=None,
    )
    if demand.gradient_bytes is None:
        return without_communication
    if topology.size == 1:
        return replace(without_communication, communication_s=0.0)
    return _with_communication(without_communication, demand, demand.gradient_bytes, topology)


def _with_communication(found: Forecast, demand: Demand, gradient_bytes: float, topology: Topology) -> Forecast:
    """(4) to (7)"""
    whole = plan(topology, "all_reduce", round(gradient_bytes))
    # Without seconds, compute_s is no time: backward then hides everything, and "auto" takes no codec.
    codec = _codec_for(demand, whole, found.compute_s if demand.in_seconds else math.inf)
    coded = with_codec(whole, _codec(codec).name)
    communication_s = communication(topology, gradient_bytes, codec)
    buckets = num_buckets_of(gradient_bytes)
    exposed_s = exposed(communication_s, found.compute_s, buckets) if demand.in_seconds else 0.0
    return replace(
        found,
        communication_s=communication_s,
        exposed_s=exposed_s,
        codec=codec,
        throughput=sum(found.shares) / (found.compute_s + exposed_s + found.other_s),
        bound_s=coded.bound_s,
        bottleneck=coded.bottleneck,
        plan=coded,
    )


def communication(topology: Topology, gradient_bytes: float, codec: str) -> float:
    """(4), with a plan for full buckets and one for the rest."""
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
    """The codec that `collectives.attach` would choose for "auto"."""
    if demand.codec != "auto":
        return demand.codec
    return choose(
        whole.codecs, [whole.num_bytes], BACKWARD * compute_s, lambda _, codec: with_codec(whole, codec).predicted_s
    ).codec


def _codec(name: str) -> Codec:
    """The ratio of low-rank depends on the model's layers, which are unknown here, so it counts as no codec."""
    return codec_of("none" if name == "low-rank" else name)
