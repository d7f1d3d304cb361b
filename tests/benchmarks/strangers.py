"""Strangers against groups: random, replayed, reflected, slow and oversized connections, from processes of their own.

    python -m tests.benchmarks.strangers                     10,000 connections, about a minute
    python -m tests.benchmarks.strangers --connections 500   a short one

Each of several groups of three ranks is kept from forming (its last rank comes late) while strangers connect to the two
that listen; then it must form and compute a right sum. The last fifth of the connections goes to the ports of groups
that have formed, where nobody listens any more. A stranger is accepted if it is sent anything after the first nonce.

Exit status 1 if one was accepted, a group failed or hung, or more handshakes were under way than the acceptor allows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import random
import secrets
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from collectives.engine.runner import Engine, connect
from collectives.options import Options
from collectives.schedule.op import OpSpec
from collectives.transport import acceptor, handshake
from collectives.transport.watched_store import WatchedStore
from tests.collectives.engine.group import MemoryStore

TOKEN = secrets.token_hex(16)
KINDS = ("random", "replayed", "reflected", "slow", "oversized", "wrong token", "silent")
GROUPS, SIZE, WORKERS, AT_ONCE, PATIENCE_S = 4, 3, 2, 100, 5.0
HANG_S = 120.0


@dataclass
class Worst:
    """Most threads, descriptors and handshakes at one moment, sampled while the groups form."""

    threads: int = 0
    descriptors: int = 0
    pending: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self.over.wait(0.005):
            self.threads = max(self.threads, len(os.listdir("/proc/self/task")))
            self.descriptors = max(self.descriptors, len(os.listdir("/proc/self/fd")))


async def knock(kind: str, port: int, recorded: list[bytes]) -> str:
    """One connection; "accepted", "refused", or "nobody" where nobody listens."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return "nobody"
    try:
        nonce = await asyncio.wait_for(reader.readexactly(handshake.NONCE_BYTES), PATIENCE_S)
        if kind == "random":
            writer.write(secrets.token_bytes(random.randrange(1, 4000)))
        elif kind == "replayed":
            writer.write(random.choice(recorded))
        elif kind == "reflected":
            writer.write((3 * len(nonce)).to_bytes(4, "little") + 3 * nonce)
        elif kind == "slow":
            for byte in b"\xc8\0\0\0" + secrets.token_bytes(20):
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
        elif kind == "oversized":
            writer.write(b"\xff\xff\xff\x7f" + bytes(1 << 20))
        elif kind == "wrong token":
            hello = random.choice(recorded)[4 + handshake.MAC_BYTES + handshake.NONCE_BYTES :]
            secret = handshake.Secret(secrets.token_bytes(32), b"")
            fresh = secrets.token_bytes(handshake.NONCE_BYTES)
            proof = secret.proof(b"connector", handshake._transcript(nonce, fresh, hello))
            writer.write(len(proof + fresh + hello).to_bytes(4, "little") + proof + fresh + hello)
        return "accepted" if await asyncio.wait_for(reader.read(1), PATIENCE_S) else "refused"
    except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
        return "refused"
    finally:
        writer.close()


def attack(count: int, ports: list[int], recorded: list[bytes]) -> dict[str, int]:
    """That many connections, AT_ONCE at a time, on a process of its own."""

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it warns of writing to a connection that was refused

    async def all_of_them() -> Counter[str]:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> str:
            async with places:
                return await knock(KINDS[number % len(KINDS)], random.choice(ports), recorded)

        return Counter(await asyncio.gather(*(one(number) for number in range(count))))

    return dict(asyncio.run(all_of_them()))


def record(into: list[bytes]) -> None:
    """Keep what ranks of this process say in their handshakes, for strangers to say again."""
    send = handshake.send_within

    def recording(connection: object, payload: bytes, patience: object) -> None:
        into.append(payload)
        send(connection, payload, patience)  # type: ignore[arg-type]

    handshake.send_within = recording


def watch_pending(worst: Worst) -> None:
    turn = acceptor.Acceptor._turn

    def watching(self: acceptor.Acceptor) -> None:
        turn(self)
        worst.pending = max(worst.pending, len(self._pending))

    acceptor.Acceptor._turn = watching  # type: ignore[method-assign]


def under_attack(number: int, count: int, recorded: list[bytes], tally: Counter[str], pool: object) -> list[int]:
    """Form a group while strangers connect to it, and use it; the ports at which it listened."""
    store, go_on = MemoryStore(), threading.Event()
    publish = WatchedStore.publish
    arrived = threading.Semaphore(0)

    def late(watched: WatchedStore, key: str, value: object) -> None:
        publish(watched, key, value)
        if key == "listens":
            arrived.release()
            if watched.rank == SIZE - 1:
                go_on.wait(HANG_S)

    WatchedStore.publish = late  # type: ignore[method-assign]
    with ThreadPoolExecutor(SIZE) as ranks:
        joining = [
            ranks.submit(connect, store, rank, SIZE, f"group {number}", HANG_S, Options(host=f"h{rank}", token=TOKEN))
            for rank in range(SIZE)
        ]
        for _ in range(SIZE):
            arrived.acquire()
        time.sleep(0.3)  # the ranks that came have met: strangers repeat what was said at this meeting, too
        ports = [_port(store, rank) for rank in range(SIZE - 1)]
        for outcome in pool.starmap(attack, [(count // WORKERS, ports, recorded)] * WORKERS):  # type: ignore[attr-defined]
            tally.update(outcome)
        go_on.set()
        group = [each.result() for each in joining]
        sums = list(ranks.map(_sum, group))
        list(ranks.map(Engine.close, group))
    WatchedStore.publish = publish  # type: ignore[method-assign]
    assert sums == [SIZE] * SIZE, sums
    return ports


def _port(store: MemoryStore, rank: int) -> int:
    text = store.get(f"listens/{rank}").decode()
    return int(json.loads(text.partition(" ")[2])["port"])


def _sum(engine: Engine) -> float:
    value = np.ones(10_000, np.float32)
    at = value.ctypes.data
    engine.run(OpSpec("all_reduce", "float32", "sum", None, (10_000,)), at, at)
    return float(value.max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    total = parser.parse_args().connections
    recorded: list[bytes] = []
    worst, tally, crashes = Worst(), Counter[str](), 0
    record(recorded)
    watch_pending(worst)
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        calm = under_attack(0, 0, [], Counter(), pool)  # compiles, and records what a group of the same token says
        before = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
        sampler = threading.Thread(target=worst.watch)
        sampler.start()
        started, ports = time.monotonic(), list(calm)
        for number in range(1, GROUPS + 1):
            try:
                ports += under_attack(number, total * 4 // 5 // GROUPS, recorded, tally, pool)
            except Exception as error:
                crashes += 1
                print(f"group {number}: {type(error).__name__}: {error}")
        forming_s, against_forming = time.monotonic() - started, sum(tally.values())
        for outcome in pool.starmap(attack, [(total // 5 // WORKERS, ports, recorded)] * WORKERS):
            tally.update(outcome)
        worst.over.set()
        sampler.join()
    print(f"connections   {sum(tally.values())}: {against_forming} against forming groups, in {forming_s:.0f} s")
    print(f"accepted      {tally['accepted']}")
    print(f"refused       {tally['refused']} by a rank, {tally['nobody']} where nobody listens any more")
    print(f"crashes       {crashes} of {GROUPS} groups failed or hung")
    print(f"threads       {worst.threads} at most, {before[0]} before")
    print(f"descriptors   {worst.descriptors} at most, {before[1]} before; {worst.pending} handshakes in one acceptor")
    return int(tally["accepted"] > 0 or crashes > 0 or worst.pending > acceptor.MAX_PENDING)


if __name__ == "__main__":
    sys.exit(main())
