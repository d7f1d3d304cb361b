"""Ranks killed by SIGKILL while others need them: how soon every survivor has raised, and whether it names the culprit.

    python -m tests.benchmarks.deaths            20 deaths in each phase, several minutes
    python -m tests.benchmarks.deaths --deaths 3

In `init` and `new_group` a rank dies when it is about to publish something, each of the things that it publishes in
turn; in `training` after a random time, in the middle of all-reduces; in `destroy` when it is about to leave while the
others still need it. Seconds are from the signal to the exception. In `init` the death comes once control connections
exist: before that nobody can tell a dead rank from a late one (see docs/internals/engine.md, "Forming").
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from collectives.transport.watched_store import WatchedStore
from tests.processes import WorkerError, run

SIZE, TIMEOUT = 4, timedelta(seconds=120)
KEYS = {"init": ("executor", "digest", "near"), "new_group": ("about", "listens", "executor", "digest", "near")}
PHASES = ("init", "new_group", "training", "destroy")


def die(store: Any) -> None:
    store.set("died at", str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(key: str, store: Any) -> None:
    publish = WatchedStore.publish

    def dying(watched: WatchedStore, at: str, value: object) -> None:
        if at == key:
            die(store)
        publish(watched, at, value)

    WatchedStore.publish = dying  # type: ignore[method-assign]


def train() -> None:
    tensor = torch.ones(500_000)
    while True:
        dist.all_reduce(tensor, dist.ReduceOp.AVG)


def survive(rank: int, size: int, store: Any, phase: str, victim: int, key: str, delay_s: float) -> tuple[float, str]:
    """Seconds from the death to this rank's exception, and its words."""

    def in_phase() -> None:
        if phase == "init" and rank == victim:
            dies_at(key, store)
        dist.init_process_group(
            "narrowgauge", store=dist.PrefixStore("g", store), rank=rank, world_size=size, timeout=TIMEOUT
        )
        dist.barrier()
        if phase == "new_group":
            if rank == victim:
                dies_at(key, store)
            dist.new_group(list(range(size)))
        if rank == victim and phase == "training":
            threading.Timer(delay_s, die, [store]).start()
        if rank == victim and phase == "destroy":
            die(store)
        train()

    try:
        in_phase()
    except Exception as error:
        return time.time() - float(store.get("died at")), str(error)
    return float("inf"), "nothing"


def tally(phase: str, deaths: int, say: Callable[[str], object]) -> bool:
    """Kill so often in a phase; whether every survivor named the dead rank."""
    seconds, named, total = list[float](), 0, 0
    for number in range(deaths):
        victim, keys = random.randrange(SIZE), KEYS.get(phase, ("",))
        try:
            results = run(survive, SIZE, phase, victim, keys[number % len(keys)], random.random(), may_die={victim})
        except WorkerError as error:
            say(f"{phase}: {error}")
            return False
        for rank, result in enumerate(results):
            if rank != victim:
                took_s, words = result
                seconds.append(took_s)
                total += 1
                named += bool(re.search(rf"\brank {victim}\b", words))
    seconds.sort()
    middle = seconds[len(seconds) // 2]
    say(f"{phase:12}{deaths:8}{middle:12.2f}{seconds[-1]:12.2f}{named:8} of {total}")
    return named == total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deaths", type=int, default=20, help="in each phase")
    deaths = parser.parse_args().deaths
    print(f"{'phase':12}{'deaths':>8}{'median s':>12}{'worst s':>12}{'named':>8}")
    passed = [tally(phase, deaths, print) for phase in PHASES]  # all of them, whatever the first says
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
