"""The way from Python into the compiled loop: one address in, a status out.

Taking thirty arrays apart at each call would cost more than a short op's arithmetic. So the arrays of a `Net` and a
`Table` are described once, as pairs of address and length, and compiled code makes arrays of them again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from collectives.engine.jit import jit, void_pointer
from collectives.engine.loop import advance
from collectives.engine.net import CONN, HEADER, POLLFD, Net
from collectives.engine.table import COPY, EDGE, QUEUE, RUN, STEP, TREE, Table


class Entry:
    """A net and a table, ready to be run.

    Keeps both alive; their arrays must not be replaced.
    """

    def __init__(self, net: Net, table: Table) -> None:
        self._arrays = (net, table)
        self._places = np.concatenate([_places(net), _places(table)])
        self._at = int(self._places.ctypes.data)

    def advance(self) -> int:
        """As `loop.advance`."""
        return advance_at(self._at)


def _places(arrays: NamedTuple) -> npt.NDArray[np.int64]:
    """Address and length of each array."""
    return np.array([(each.ctypes.data, len(each)) for each in arrays], np.int64).reshape(-1)


@jit
def advance_at(at: int) -> int:
    p = numba.carray(void_pointer(at), (2 * (NET_FIELDS + TABLE_FIELDS),), np.int64)
    net = Net(
        _array(p, 0, CONN), _array(p, 1, HEADER), _array(p, 2, HEADER),
        _array(p, 3, np.int64), _array(p, 4, np.int64), _array(p, 5, POLLFD), _array(p, 6, np.int64),
        _array(p, 7, np.int64), _array(p, 8, np.int64), _array(p, 9, np.int64), _array(p, 10, np.uint8),
        _array(p, 11, np.int64), _array(p, 12, np.int64), _array(p, 13, np.int64), _array(p, 14, np.int64),
        _array(p, 15, np.uint8), _array(p, 16, np.int64), _array(p, 17, np.int64), _array(p, 18, np.int64),
    )  # fmt: skip
    n = NET_FIELDS
    table = Table(
        _array(p, n, TREE), _array(p, n + 1, EDGE), _array(p, n + 2, STEP), _array(p, n + 3, COPY),
        _array(p, n + 4, np.int64), _array(p, n + 5, RUN), _array(p, n + 6, np.int64), _array(p, n + 7, np.int64),
        _array(p, n + 8, np.uint8), _array(p, n + 9, np.int64), _array(p, n + 10, np.uint8), _array(p, n + 11, QUEUE),
        _array(p, n + 12, np.int64), _array(p, n + 13, np.int64), _array(p, n + 14, np.int64),
    )  # fmt: skip
    return advance(net, table)


NET_FIELDS, TABLE_FIELDS = len(Net._fields), len(Table._fields)


@jit
def _array(places: Any, k: int, dtype: Any) -> Any:
    return numba.carray(void_pointer(places[2 * k]), (places[2 * k + 1],), dtype)
