"""Memory that ranks of one host share: each has an arena that it writes and the others read.

An arena is an anonymous file (memfd): it has no name that could be left behind, and is gone with the last process that
maps it, however they end. Peers open it through /proc. Its owner says where on its control connection, so that is the
process that proved the token; and what is found there must be an arena of this user's that cannot change its size, and
end with a secret that was said on the same connection: in containers another process may have the same number.

All ranks of a host share memory or none does. Where it cannot be had, slices travel over sockets.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from collectives.transport.rendezvous import Rendezvous

SECRET_BYTES = 32  # after the arena, so that slices begin on a page
NAME = "narrowgauge-"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
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


def share(meeting: Rendezvous, hosts: Sequence[int], arena_bytes: int, wanted: bool = True) -> SharedMemory:
    """Map the arenas of the ranks of this host; returns when all ranks of the group know which hosts share memory.

    Args:
        meeting: of the group's ranks, with their control connections.
        hosts: for each rank the index of its host.
        arena_bytes: size of an arena, the same on all ranks; only pages that are written to take memory.
        wanted: False keeps this rank's host to sockets.

    Raises:
        RendezvousError: a rank left.
    """
    rank = meeting.rank
    near = [other for other, host in enumerate(hosts) if host == hosts[rank] and other != rank]
    shared = SharedMemory(_arena_bytes=arena_bytes)
    try:
        problem = None if wanted else f"rank {rank} has it switched off"
        if near:
            where = {"problem": problem} if problem else _create(shared, rank)
            problem = str(where["problem"]) if "problem" in where else None
            for other, published in meeting.exchange(near, where).items():
                problem = problem or _map(shared, other, published)
        problems: dict[int, str] = {}
        for other, found in enumerate(meeting.store.gather("near", problem)):
            if found is not None:
                problems.setdefault(hosts[other], str(found))
    except BaseException:
        shared.close()
        raise
    shared.hosts = frozenset(index for index in set(hosts) if hosts.count(index) > 1 and index not in problems)
    if hosts[rank] not in shared.hosts:
        shared.close()
        if wanted and near:
            logger.warning(
                "rank %d: the ranks of this host share no memory, slices go by sockets, which is slower: %s",
                rank, problems[hosts[rank]],
            )  # fmt: skip
    return shared


def _create(shared: SharedMemory, rank: int) -> dict[str, object]:
    """Make this rank's arena; where it is, or what went wrong."""
    secret = secrets.token_bytes(SECRET_BYTES)
    try:
        shared._fd = os.memfd_create(f"{NAME}{rank}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(shared._fd, shared._arena_bytes + SECRET_BYTES)
        fcntl.fcntl(shared._fd, fcntl.F_ADD_SEALS, SEALS)
        os.pwrite(shared._fd, secret, shared._arena_bytes)
        _keep(shared, rank, shared._fd, writable=True)
    except OSError as error:
        return {"problem": f"rank {rank}: no arena can be made: {error.strerror or error}"}
    return {"pid": os.getpid(), "fd": shared._fd, "secret": secret.hex()}


def _map(shared: SharedMemory, rank: int, published: object) -> str | None:
    """Map another rank's arena; what went wrong, if it did."""
    said = published if isinstance(published, dict) else {}
    if "problem" in said:
        return str(said["problem"])[:200]
    pid, number = said.get("pid"), said.get("fd")
    if type(pid) is not int or type(number) is not int or pid <= 0 or number < 0:
        return f"rank {rank} did not say where its arena is"
    path = f"/proc/{pid}/fd/{number}"
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return f"the process {pid} of rank {rank} belongs to another user; are they in different containers?"
        if not os.readlink(path).startswith(f"/memfd:{NAME}"):  # opening anything else might block, or do something
            return f"{path} is not rank {rank}'s arena; are they in different containers?"
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return f"rank {rank}'s arena cannot be opened ({path}: {error.strerror}); are they in different containers?"
    try:
        is_whole = os.fstat(fd).st_size == shared._arena_bytes + SECRET_BYTES
        is_sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
        if not is_whole or os.pread(fd, SECRET_BYTES, shared._arena_bytes).hex() != said.get("secret"):
            return f"{path} is not rank {rank}'s arena; are they in different containers?"
        if not is_sealed:  # a file that shrinks ends every process that reads what was there
            return f"rank {rank}'s arena could change its size"
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
