"""A group's connections as arrays: the half of the loop's state that lasts from op to op (the other is the table)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from collectives.engine.compiled import codecs
from collectives.engine.compiled.codecs import CODEC_FIELDS, decode_address, encode_address
from collectives.engine.compiled.kernels import FOLD_FIELDS, WORK_BYTES, fold_address
from collectives.engine.compiled.table import Records

HEADER = np.dtype(
    [
        ("op", "i8"),
        ("spec", "u4"),  # fingerprint of the op's spec and plan
        ("generation", "u2"),
        ("direction", "u2"),
        ("tree", "u4"),
        ("slice", "u4"),
        ("length", "u4"),  # bytes of the payload
        ("arena_offset", "u4"),  # between near ranks: of the payload in the sender's arena, in ARENA_OFFSET_BYTES
    ]
)
HEADER_BYTES = HEADER.itemsize
ARENA_OFFSET_BYTES = 64
BATCH = 32  # headers that a near connection takes or gives at a time; others have one
BATCH_BYTES = BATCH * HEADER_BYTES
CONN = np.dtype(
    [
        ("fd", "i8"), ("peer", "i8"),
        ("near", "i8"),  # 1: payloads are in the sender's arena, only headers come and go
        ("rx_ready", "i8"), ("tx_ready", "i8"),  # worth trying without asking poll
        ("header_at", "i8"), ("header_got", "i8"),  # bytes of its headers that are done with, that are here
        ("accepted", "i8"), ("parked", "i8"),  # what became of a complete header
        ("wakes_at", "i8"),  # bytes that must be here before poll reports them
        ("decoded_at", "i8"),  # where an encoded payload goes when it has been decoded; 0: it is not
        ("payload_at", "i8"), ("payload_length", "i8"), ("payload_got", "i8"),
        ("tree", "i8"), ("slice", "i8"), ("direction", "i8"),
        ("tx_active", "i8"),  # frames that are being sent
        ("tx_at", "i8"), ("tx_length", "i8"), ("tx_sent", "i8"),
    ]
)  # fmt: skip
TRACE_FIELDS = 4  # when (monotonic ns), kind (UP, DOWN or WAIT), peer, what
WAIT = 2
POLLFD = np.dtype([("fd", "i4"), ("events", "i2"), ("revents", "i2")])


class Net(NamedTuple):
    """A group's connections, as the loop sees them."""

    conns: Records
    rx_headers: Records  # HEADER, BATCH for each connection
    tx_headers: Records
    arenas: npt.NDArray[np.int64]  # for each rank that is near, this one included, its arena's address; else 0
    control: npt.NDArray[np.int64]  # for each rank: the fd of its control connection, or -1
    polls: Records  # POLLFD: the connections, then the control connections, then the waker
    waker: npt.NDArray[np.int64]  # one fd; readable when Python wants the loop to come out
    message: npt.NDArray[np.int64]  # a struct msghdr that points to `iov`
    iov: npt.NDArray[np.int64]  # two struct iovec
    clock: npt.NDArray[np.int64]  # a struct timespec
    work: npt.NDArray[np.uint8]  # a fold's chunks
    fold: npt.NDArray[np.int64]  # a fold's arguments
    fold_address: npt.NDArray[np.int64]  # one address: the compiled kernels
    code: npt.NDArray[np.int64]  # a codec's arguments
    code_address: npt.NDArray[np.int64]  # two addresses: encode, decode
    code_work: npt.NDArray[np.uint8]
    waited_ns: npt.NDArray[np.int64]  # for each rank: poll time attributed to it
    trace_ring: npt.NDArray[np.int64]  # a ring of entries, see `trace_ring.py`; empty without a trace
    trace_written: npt.NDArray[np.int64]  # one number: entries written so far


def make_net(
    fds: list[tuple[int, int]], control: list[int], waker: int, arenas: Mapping[int, int] = {}, trace_entries: int = 0
) -> Net:
    """State for connections given as (peer's rank, fd), control fds by rank (-1: none) and the waker's fd.

    Args:
        arenas: for each near rank and this one the address of its arena; peers that are in it are near.
        trace_entries: length of the trace ring.
    """
    conns = np.zeros(len(fds), CONN)
    conns["peer"], conns["fd"] = [peer for peer, _ in fds], [fd for _, fd in fds]
    conns["near"] = [peer in arenas for peer, _ in fds]
    conns["tx_ready"] = conns["wakes_at"] = 1
    iov, message = np.zeros(4, np.int64), np.zeros(7, np.int64)
    message[2], message[3] = iov.ctypes.data, 2
    return Net(
        conns=conns,
        rx_headers=np.zeros(len(fds) * BATCH, HEADER),
        tx_headers=np.zeros(len(fds) * BATCH, HEADER),
        arenas=np.array([arenas.get(rank, 0) for rank in range(len(control))], np.int64),
        control=np.array(control, np.int64),
        polls=np.zeros(len(fds) + len(control) + 1, POLLFD),
        waker=np.array([waker], np.int64),
        message=message,
        iov=iov,
        clock=np.zeros(2, np.int64),
        work=np.zeros(WORK_BYTES + 64, np.uint8),
        fold=np.zeros(FOLD_FIELDS, np.int64),
        fold_address=np.array([fold_address()], np.int64),
        code=np.zeros(CODEC_FIELDS, np.int64),
        code_address=np.array([encode_address(), decode_address()], np.int64),
        code_work=np.zeros(codecs.WORK_BYTES, np.uint8),
        waited_ns=np.zeros(len(control), np.int64),
        trace_ring=np.zeros(trace_entries * TRACE_FIELDS, np.int64),
        trace_written=np.zeros(1, np.int64),
    )
