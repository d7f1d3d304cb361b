"""A slice between numbers and code: the arguments of the compiled codecs."""

from __future__ import annotations

from typing import Any

import numpy as np

from collectives.engine.compiled.addresses import slice_elems
from collectives.engine.compiled.codecs import (
    C_CODE,
    C_CODEC,
    C_COUNT,
    C_DECODED,
    C_DIVISOR,
    C_RESIDUAL,
    C_VALUES,
    C_WORK,
)
from collectives.engine.compiled.connections import Net
from collectives.engine.compiled.jit import call, jit
from collectives.engine.compiled.table import Table


@jit
def encode_slice(
    net: Net, table: Table, tree: Any, s: int, values: int, divisor: int, code: int, corrects: bool, decoded: int
) -> None:
    """Encode a slice from one address to another; with the op's residual if there is one and the rank `corrects`."""
    run, f = table.run[0], net.code
    residual = np.int64(0)
    if corrects and run["residual"] != 0:
        residual = run["residual"] + tree["source_offset"] + s * tree["slice_elems"] * run["item_size"]
    f[C_CODEC], f[C_COUNT], f[C_VALUES], f[C_CODE] = run["codec"], slice_elems(tree, s), values, code
    f[C_RESIDUAL], f[C_DIVISOR], f[C_DECODED], f[C_WORK] = residual, divisor, decoded, net.code_work.ctypes.data
    call(net.code_address[0], f.ctypes.data)


@jit
def decode_slice(net: Net, table: Table, tree: Any, s: int, code: int, values: int) -> None:
    f = net.code
    f[C_CODEC], f[C_COUNT], f[C_VALUES], f[C_CODE] = table.run[0]["codec"], slice_elems(tree, s), values, code
    f[C_WORK] = net.code_work.ctypes.data
    call(net.code_address[1], f.ctypes.data)
