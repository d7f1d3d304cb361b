"""Who measures with whom at the same time: pairs of hosts in rounds, no host twice in one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Flow = tuple[int, int]


def tournament(count: int) -> list[list[Flow]]:
    """Rounds in which everybody meets everybody else once: the circle method; one rests in each round if odd."""
    players: list[int | None] = [*range(count)] + ([None] if count % 2 else [])
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        facing = zip(players[:half], reversed(players[half:]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in facing if a is not None and b is not None])
        players.insert(1, players.pop())
    return rounds


def matchings(pairs: Iterable[Flow]) -> list[list[Flow]]:
    """These pairs in few rounds: each takes all that are free."""
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


def trios(hubs: Sequence[int], hosts: Sequence[int]) -> list[list[Flow]]:
    """Rounds in which every center meets two other hosts at once, as (center, other); none with less than 3 hosts."""
    many = len(hosts) // 3
    rounds = []
    for start in range(0, len(hubs), many) if many else ():
        group = hubs[start : start + many]
        others = iter([host for host in dict.fromkeys([*hubs, *hosts]) if host not in group])
        rounds.append([(center, next(others)) for center in group for _ in range(2)])
    return rounds
