"""How many samples of a global batch each rank gets: a pure function, the same on all ranks."""

from __future__ import annotations

from collections.abc import Sequence

from collectives.errors import UsageError


def apportion(samples: int, speeds: Sequence[float]) -> list[int]:
    """Shares in proportion to the speeds, at least 1 each, that add up to `samples`.

    By the largest remainder method: each rank gets the whole part of its quota, samples * speed / sum of speeds, and at
    least 1; what is left goes one by one to the largest fractions, of equal ones to the lowest rank.

    Args:
        samples: of the global batch, at least one for each rank.
        speeds: samples per second of each rank, all more than 0.

    Raises:
        UsageError: fewer samples than ranks, or a speed of 0 or less.
    """
    if samples < len(speeds):
        raise UsageError(f"a batch of {samples} samples for {len(speeds)} ranks; wanted at least one for each")
    if min(speeds) <= 0:
        raise UsageError(f"speeds are {list(speeds)}; wanted samples per second, more than 0")
    quotas = [samples * speed / sum(speeds) for speed in speeds]
    shares = [max(1, int(quota)) for quota in quotas]
    by_need = sorted(range(len(speeds)), key=lambda rank: (shares[rank] - quotas[rank], rank))
    for rank in by_need[: max(0, samples - sum(shares))]:
        shares[rank] += 1
    while sum(shares) > samples:  # ranks were raised to 1: take it back where shares exceed quotas most
        sharing = [rank for rank, share in enumerate(shares) if share > 1]
        shares[max(sharing, key=lambda rank: (shares[rank] - quotas[rank], -rank))] -= 1
    return shares
