"""Which pairs of hosts measure at the same time: rounds of pairs, in which no host occurs twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Flow = tuple[int, int]


def tournament(count: int) -> list[list[Flow]]:
    """Rounds in which each host meets each other host once, by the circle method; with an odd number one host rests.

    One host keeps its place and the others move on by one place after each round. That makes n - 1 rounds (n if n is
    odd), the fewest possible, instead of n (n - 1) / 2 pairs one after the other.
    """
    players: list[int | None] = [*range(count)] + ([None] if count % 2 else [])
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        facing = zip(players[:half], reversed(players[half:]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in facing if a is not None and b is not None])
        players.insert(1, players.pop())  # the first one stays
    return rounds


def matchings(pairs: Iterable[Flow]) -> list[list[Flow]]:
    """These pairs in few rounds, greedily: each round takes every pair whose hosts are free."""
    left, rounds = sorted(set(pairs)), list[list[Flow]]()
    while left:
        used: set[int] = set()
        chosen = []
        for pair in left:
            if not used & {*pair}:
                chosen.append(pair)
                used |= {*pair}
        left = [pair for pair in left if pair not in chosen]
        rounds.append(chosen)
    return rounds


def trios(centers: Sequence[int], hosts: Sequence[int]) -> list[list[Flow]]:
    """Rounds in which every center meets two other hosts at once, as (center, other); none with fewer than 3 hosts."""
    many = len(hosts) // 3
    rounds = []
    for start in range(0, len(centers), many) if many else ():
        group = centers[start : start + many]
        others = iter([host for host in dict.fromkeys([*centers, *hosts]) if host not in group])
        rounds.append([(center, next(others)) for center in group for _ in range(2)])
    return rounds
