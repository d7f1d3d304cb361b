"""The arrays of a net and a table behind one address, so that Python hands the loop one number at each call.

Taking some thirty arrays apart at each call would cost more than a short op's arithmetic. They are described once, as
pairs of address and length, and compiled code makes arrays of them again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from collectives.engine.compiled.connections import CONN, HEADER, POLLFD, Net
from collectives.engine.compiled.jit import array_at, jit
from collectives.engine.compiled.table import COPY, EDGE, QUEUE, RUN, STEP, TREE, Table

NET_FIELDS = len(Net._fields)


def describe(net: Net, table: Table) -> npt.NDArray[np.int64]:
    """What `arrays_at` reads; valid as long as these arrays live and are not replaced."""
    return np.concatenate([_addresses_and_lengths(net), _addresses_and_lengths(table)])


def _addresses_and_lengths(arrays: NamedTuple) -> npt.NDArray[np.int64]:
    """Address and length of each array."""
    return np.array([(each.ctypes.data, len(each)) for each in arrays], np.int64).reshape(-1)


@jit
def arrays_at(at: int) -> tuple[Net, Table]:
    """The net and the table that are described at an address."""
    net = Net(
        array_at(at, 0, CONN), array_at(at, 1, HEADER), array_at(at, 2, HEADER),
        array_at(at, 3, np.int64), array_at(at, 4, np.int64), array_at(at, 5, POLLFD), array_at(at, 6, np.int64),
        array_at(at, 7, np.int64), array_at(at, 8, np.int64), array_at(at, 9, np.int64), array_at(at, 10, np.uint8),
        array_at(at, 11, np.int64), array_at(at, 12, np.int64), array_at(at, 13, np.int64), array_at(at, 14, np.int64),
        array_at(at, 15, np.uint8), array_at(at, 16, np.int64), array_at(at, 17, np.int64), array_at(at, 18, np.int64),
    )  # fmt: skip
    n = NET_FIELDS
    table = Table(
        array_at(at, n, TREE), array_at(at, n + 1, EDGE), array_at(at, n + 2, STEP), array_at(at, n + 3, COPY),
        array_at(at, n + 4, np.int64), array_at(at, n + 5, RUN), array_at(at, n + 6, np.int64),
        array_at(at, n + 7, np.int64),
        array_at(at, n + 8, np.uint8), array_at(at, n + 9, np.int64), array_at(at, n + 10, np.uint8),
        array_at(at, n + 11, QUEUE),
        array_at(at, n + 12, np.int64), array_at(at, n + 13, np.int64), array_at(at, n + 14, np.int64),
    )  # fmt: skip
    return net, table
