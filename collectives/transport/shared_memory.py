"""Memory that ranks of one host share: each has an arena that it writes and the others read.

An arena is an anonymous file (memfd): it has no name that could be left behind, and is gone with the last process that
maps it, however they end. Peers open it through /proc; what they find there must end with the secret that its owner
published, since in containers the same process number may be another process.

All ranks of a host share memory or none does. Where it cannot be had, slices travel over sockets.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from collectives.transport.rendezvous import Store

SECRET_BYTES = 32  # after the arena, so that slices begin on a page
logger = logging.getLogger(__name__)


@dataclass
class SharedMemory:
    """What a rank can see of its peers' memory.

    Attributes:
        arenas: by rank, this one included, the address of its arena; empty if this host shares none.
        hosts: indices of the hosts that share memory, the same on all ranks.
    """

    arenas: dict[int, int] = field(default_factory=dict)
    hosts: frozenset[int] = frozenset()
    _arena_bytes: int = 0
    _maps: list[mmap.mmap] = field(default_factory=list)
    _fd: int | None = None

    def close(self) -> None:
        """Unmap everything; nothing may read or write an arena any more."""
        self.arenas.clear()
        for mapped in self._maps:
            with contextlib.suppress(BufferError):  # a view still lives; the end of the process unmaps it
                mapped.close()
        self._maps.clear()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def share(store: Store, rank: int, hosts: Sequence[int], arena_bytes: int, wanted: bool = True) -> SharedMemory:
    """Map the arenas of the ranks of this host; returns when all ranks of the group know which hosts share memory.

    Args:
        hosts: for each rank the index of its host.
        arena_bytes: size of an arena, the same on all ranks; only pages that are written to take memory.
        wanted: False keeps this rank's host to sockets.
    """
    near = [other for other, host in enumerate(hosts) if host == hosts[rank]]
    shared = SharedMemory(_arena_bytes=arena_bytes)
    problem = None if wanted else f"rank {rank} has it switched off"
    if len(near) > 1:
        problem = problem or _create(shared, store, rank)
        if problem is not None:
            store.set(f"arena/{rank}", json.dumps({"problem": problem}))
        for other in near:
            if problem is None and other != rank:
                problem = _map(shared, other, json.loads(bytes(store.get(f"arena/{other}"))))
        store.set(f"near/{rank}", json.dumps(problem))
    problems = _problems(store, hosts)
    shared.hosts = frozenset(index for index in set(hosts) if hosts.count(index) > 1 and index not in problems)
    if hosts[rank] not in shared.hosts:
        shared.close()
        if wanted and len(near) > 1:
            logger.warning(
                "rank %d: the ranks of this host share no memory, slices go by sockets, which is slower: %s",
                rank, problems[hosts[rank]],
            )  # fmt: skip
    return shared


def _problems(store: Store, hosts: Sequence[int]) -> dict[int, str]:
    """By host, what keeps its ranks from sharing memory."""
    problems: dict[int, str] = {}
    for other, host in enumerate(hosts):
        if hosts.count(host) > 1:
            problem = json.loads(bytes(store.get(f"near/{other}")))
            if problem is not None:
                problems.setdefault(host, problem)
    return problems


def _create(shared: SharedMemory, store: Store, rank: int) -> str | None:
    """Make this rank's arena and publish where it is; what went wrong, if it did."""
    secret = secrets.token_bytes(SECRET_BYTES)
    try:
        shared._fd = os.memfd_create(f"narrowgauge-{rank}", os.MFD_CLOEXEC)
        os.ftruncate(shared._fd, shared._arena_bytes + SECRET_BYTES)
        os.pwrite(shared._fd, secret, shared._arena_bytes)
        _keep(shared, rank, shared._fd, writable=True)
    except OSError as error:
        return f"rank {rank}: no arena can be made: {error.strerror or error}"
    store.set(f"arena/{rank}", json.dumps({"pid": os.getpid(), "fd": shared._fd, "secret": secret.hex()}))
    return None


def _map(shared: SharedMemory, rank: int, published: dict[str, object]) -> str | None:
    """Map another rank's arena; what went wrong, if it did."""
    if "problem" in published:
        return str(published["problem"])
    path = f"/proc/{published['pid']}/fd/{published['fd']}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return f"rank {rank}'s arena cannot be opened ({path}: {error.strerror}); are they in different containers?"
    try:
        if os.pread(fd, SECRET_BYTES, shared._arena_bytes).hex() != published["secret"]:
            return f"{path} is not rank {rank}'s arena; are they in different containers?"
        _keep(shared, rank, fd, writable=False)
    except OSError as error:
        return f"rank {rank}'s arena cannot be mapped: {error.strerror or error}"
    finally:
        os.close(fd)
    return None


def _keep(shared: SharedMemory, rank: int, fd: int, writable: bool) -> None:
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    mapped = mmap.mmap(fd, shared._arena_bytes + SECRET_BYTES, mmap.MAP_SHARED, access)
    with contextlib.suppress(OSError):
        mapped.madvise(mmap.MADV_DONTFORK)  # a child has no use for it
    shared._maps.append(mapped)
    shared.arenas[rank] = np.frombuffer(mapped, np.uint8).ctypes.data
