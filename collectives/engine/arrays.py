"""The arrays of a net and a table behind one address, so that Python hands the loop one number at each call.

Taking some thirty arrays apart at each call would cost more than a short op's arithmetic. They are described once, as
pairs of address and length, and compiled code makes arrays of them again.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from collectives.engine.jit import array_at, jit, void_pointer
from collectives.engine.net import CONN, HEADER, POLLFD, Net
from collectives.engine.table import COPY, EDGE, QUEUE, RUN, STEP, TREE, Table

NET_FIELDS, TABLE_FIELDS = len(Net._fields), len(Table._fields)


def describe(net: Net, table: Table) -> npt.NDArray[np.int64]:
    """What `arrays_at` reads; valid as long as these arrays live and are not replaced."""
    return np.concatenate([_places(net), _places(table)])


def _places(arrays: NamedTuple) -> npt.NDArray[np.int64]:
    """Address and length of each array."""
    return np.array([(each.ctypes.data, len(each)) for each in arrays], np.int64).reshape(-1)


@jit
def arrays_at(at: int) -> tuple[Net, Table]:
    """The net and the table that are described at an address."""
    p = numba.carray(void_pointer(at), (2 * (NET_FIELDS + TABLE_FIELDS),), np.int64)
    net = Net(
        array_at(p[2 * (0)], p[2 * (0) + 1], CONN), array_at(p[2 * (1)], p[2 * (1) + 1], HEADER), array_at(p[2 * (2)], p[2 * (2) + 1], HEADER),
        array_at(p[2 * (3)], p[2 * (3) + 1], np.int64), array_at(p[2 * (4)], p[2 * (4) + 1], np.int64), array_at(p[2 * (5)], p[2 * (5) + 1], POLLFD), array_at(p[2 * (6)], p[2 * (6) + 1], np.int64),
        array_at(p[2 * (7)], p[2 * (7) + 1], np.int64), array_at(p[2 * (8)], p[2 * (8) + 1], np.int64), array_at(p[2 * (9)], p[2 * (9) + 1], np.int64), array_at(p[2 * (10)], p[2 * (10) + 1], np.uint8),
        array_at(p[2 * (11)], p[2 * (11) + 1], np.int64), array_at(p[2 * (12)], p[2 * (12) + 1], np.int64), array_at(p[2 * (13)], p[2 * (13) + 1], np.int64), array_at(p[2 * (14)], p[2 * (14) + 1], np.int64),
        array_at(p[2 * (15)], p[2 * (15) + 1], np.uint8), array_at(p[2 * (16)], p[2 * (16) + 1], np.int64), array_at(p[2 * (17)], p[2 * (17) + 1], np.int64), array_at(p[2 * (18)], p[2 * (18) + 1], np.int64),
    )  # fmt: skip
    n = NET_FIELDS
    table = Table(
        array_at(p[2 * (n)], p[2 * (n) + 1], TREE), array_at(p[2 * (n + 1)], p[2 * (n + 1) + 1], EDGE), array_at(p[2 * (n + 2)], p[2 * (n + 2) + 1], STEP), array_at(p[2 * (n + 3)], p[2 * (n + 3) + 1], COPY),
        array_at(p[2 * (n + 4)], p[2 * (n + 4) + 1], np.int64), array_at(p[2 * (n + 5)], p[2 * (n + 5) + 1], RUN), array_at(p[2 * (n + 6)], p[2 * (n + 6) + 1], np.int64), array_at(p[2 * (n + 7)], p[2 * (n + 7) + 1], np.int64),
        array_at(p[2 * (n + 8)], p[2 * (n + 8) + 1], np.uint8), array_at(p[2 * (n + 9)], p[2 * (n + 9) + 1], np.int64), array_at(p[2 * (n + 10)], p[2 * (n + 10) + 1], np.uint8), array_at(p[2 * (n + 11)], p[2 * (n + 11) + 1], QUEUE),
        array_at(p[2 * (n + 12)], p[2 * (n + 12) + 1], np.int64), array_at(p[2 * (n + 13)], p[2 * (n + 13) + 1], np.int64), array_at(p[2 * (n + 14)], p[2 * (n + 14) + 1], np.int64),
    )  # fmt: skip
    return net, table
