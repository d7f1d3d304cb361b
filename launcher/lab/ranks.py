"""A command once per rank, in the rank's host, from the first start to the last end.

Ranks are watched by pidfds: a selector waits for all of them at once, without polling and without a thread for each.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, TextIO

from launcher.config.lab_file import LabFile
from launcher.errors import LabError
from launcher.lab import inside
from launcher.lab.network import INTERFACE
from launcher.lab.record import LabRecord
from launcher.lab.signals import signals_ignored
from launcher.lab.warden import Warden
from launcher.run.agent import free_port

GRACE_S = 10.0
"""Seconds that the other ranks have after the first failure, to notice it and print their errors."""
TERM_S, LAUNCHER_TERM_S = 5.0, 20.0
"""Seconds that ranks have after SIGTERM, and a `launcher`, which has ranks of its own to end."""


@dataclass
class _Rank:
    rank: int
    host: str
    process: subprocess.Popen[bytes]
    readers: list[threading.Thread] = field(default_factory=list)
    ended: bool = False


def run(record: LabRecord, command: Sequence[str], warden: Warden, *, known_links: bool) -> int:
    """Run `command` in every rank and wait for all. Rank 0's output is passed through, lines of others get their rank.

    Args:
        command: a first word "python" means this Python.
        known_links: give the collectives the rates of the lab file, so that they do not measure.

    Returns:
        0, or the status of the rank that failed first: 128 + n if signal n ended it.

    Raises:
        LabError: a rank cannot be started; the others are ended.
    """
    words = [sys.executable if command[0] == "python" else command[0], *command[1:]]
    ranks: list[_Rank] = []
    with _ended_at_exit(ranks, TERM_S):
        common = _environment(record, known_links)
        for index, host in enumerate(record.lab.hosts):
            for local_rank, rank in enumerate(record.lab.ranks_of(index)):
                env = {**common, "RANK": rank, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": host.ranks}
                env["GROUP_RANK"] = index
                pipe = None if rank == 0 else subprocess.PIPE
                texts = {name: str(value) for name, value in env.items()}
                process = inside.start(record.lab, index, words, env=texts, stdout=pipe, stderr=pipe)
                warden.guard_group(process.pid)
                ranks.append(_Rank(rank, host.name, process))
        for each in ranks:  # no thread before the last fork, whose child would inherit the locks it holds
            each.readers += _readers(each)
        return _watch(ranks)


def run_once(record: LabRecord, command: Sequence[str], warden: Warden, env: dict[str, str]) -> int:
    """Run `command` once, in the first host, with the environment `env`. Returns its status, as `run` does."""
    ranks: list[_Rank] = []
    with _ended_at_exit(ranks, LAUNCHER_TERM_S):
        process = inside.start(record.lab, 0, command, env=env)
        warden.guard_group(process.pid)
        ranks.append(_Rank(0, record.lab.hosts[0].name, process))
        return _watch(ranks)


def _environment(record: LabRecord, known_links: bool) -> dict[str, object]:
    """What all ranks share: torchrun's variables, and the interface for Gloo and for the engine. What comes before the
    user's environment is a default, what comes after it is not."""
    lab = record.lab
    topology = {"NARROWGAUGE_TOPOLOGY": record.topology_file} if known_links else {}
    return {
        "OMP_NUM_THREADS": 1,
        "PYTHONUNBUFFERED": 1,  # or the last lines of a rank that is killed would be lost
        **os.environ,
        "WORLD_SIZE": sum(host.ranks for host in lab.hosts),
        "GROUP_WORLD_SIZE": len(lab.hosts),
        "MASTER_ADDR": lab.address(0),
        "MASTER_PORT": _master_port(lab),
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "NARROWGAUGE_INTERFACE": INTERFACE,
        "NARROWGAUGE_LAB_TOPOLOGY": record.topology_file,
        **topology,
    }


def _master_port(lab: LabFile) -> int:
    try:
        return inside.call(lab, 0, lambda: free_port(lab.address(0)))
    except OSError as error:
        raise LabError(f"host {lab.hosts[0].name} has no port for rank 0's store: {error}") from None


def _watch(ranks: list[_Rank]) -> int:
    """Wait for all ranks, but at most `GRACE_S` after the first failure. Returns the status of the first failure."""
    status = 0
    deadline: float | None = None
    with selectors.DefaultSelector() as ends, ExitStack() as fds:
        for each in ranks:
            end = os.pidfd_open(each.process.pid)
            fds.callback(os.close, end)
            ends.register(end, selectors.EVENT_READ, each)
        while ends.get_map():
            ready = ends.select(None if deadline is None else max(deadline - time.monotonic(), 0))
            if deadline is not None and not ready:
                break
            for key, _ in ready:
                ends.unregister(key.fd)
                code = _reap(key.data)
                if code and not status:
                    status, deadline = code, time.monotonic() + GRACE_S
                    _print(f"rank {key.data.rank} on host {key.data.host} ended with status {code}")
    return status


def _reap(each: _Rank) -> int:
    """Status of a rank that has ended, after its last output. Processes that it left behind are killed, since they
    would hold its pipes open and keep ports and memory."""
    code, each.ended = each.process.wait(), True
    with suppress(ProcessLookupError):
        os.killpg(each.process.pid, signal.SIGKILL)
    for reader in each.readers:
        reader.join(timeout=2)
    return 128 - code if code < 0 else code


@contextmanager
def _ended_at_exit(ranks: list[_Rank], term_s: float) -> Iterator[None]:
    """End the ranks that still run when the block is left, in whatever way: SIGTERM to all, then SIGKILL."""
    try:
        yield
    finally:
        with signals_ignored():
            left = [each for each in ranks if not each.ended]
            for each in left:
                with suppress(ProcessLookupError):
                    os.killpg(each.process.pid, signal.SIGTERM)
            deadline = time.monotonic() + term_s
            for each in left:
                with suppress(subprocess.TimeoutExpired):
                    each.process.wait(max(deadline - time.monotonic(), 0))
                each.process.kill()
                _reap(each)
            if left:
                _print(f"ended rank{'s' if left[1:] else ''} " + ", ".join(str(each.rank) for each in left))


def _readers(each: _Rank) -> list[threading.Thread]:
    pairs = ((each.process.stdout, sys.stdout), (each.process.stderr, sys.stderr))
    threads = [
        threading.Thread(target=_forward, args=(each.rank, source, target), daemon=True)
        for source, target in pairs
        if source is not None
    ]
    for thread in threads:
        thread.start()
    return threads


def _forward(rank: int, source: IO[bytes], target: TextIO) -> None:
    with source:
        for line in source:
            target.write(f"[{rank}] {line.decode(errors='replace').rstrip()}\n")
            target.flush()


def _print(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)
