"""Compile the engine, once per machine, and check what it computes on this processor."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from collectives.engine import table_builder
from collectives.engine.compiled import codecs, kernels
from collectives.engine.compiled.connections import make_net
from collectives.engine.compiled.jit import source_stamp
from collectives.engine.compiled.loop import Entry
from collectives.engine.compiled.status import DONE
from collectives.planning.planner import plan
from collectives.schedule.codec import CODECS, RAW
from collectives.schedule.op import OpSpec
from collectives.topology import Topology


def warm_up() -> float:
    """Compile the engine into Numba's cache, or load it from there, and try it. Of several processes one compiles.

    Returns:
        Seconds it took; well under one from the cache.

    Raises:
        RuntimeError: it compiles, but what it computes is wrong.
    """
    return _warm_up()


@functools.cache
def _warm_up() -> float:
    started = time.perf_counter()
    name = f"narrowgauge-{os.getuid()}-{source_stamp()[:16]}.lock"
    # Not followed if somebody has put a link there.
    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW
    with os.fdopen(os.open(Path(tempfile.gettempdir()) / name, flags, 0o600), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        spec = OpSpec("all_reduce", "float32", "sum", None, (1,))
        alone = Topology.from_hosts(["alone"])
        layout = table_builder.build(
            plan(alone, "all_reduce", 4).forest, spec, 0, [(0, 0)], slice_bytes=1024, window_bytes=1024
        )
        buffers = np.zeros(2, np.float32)
        layout.set_run(0, 0, buffers.ctypes.data, buffers.ctypes.data + 4, 0, 10**9)
        buffers[0] = 7.0
        if Entry(make_net([], [-1], -1), layout.table).advance() != DONE or buffers[1] != 7.0:
            raise RuntimeError(f"the compiled loop copied {buffers[0]} as {buffers[1]}")
        _try_fold()
        _try_codecs()
    return time.perf_counter() - started


def _try_fold() -> None:
    """Check the compiled fold, on numbers that show any misplaced element."""
    own, child = np.arange(5000, dtype=np.float32), np.arange(5000, dtype=np.float32) * 10000
    result, work = np.zeros_like(own), np.zeros(kernels.WORK_BYTES, np.uint8)
    steps = np.array([kernels.DST, kernels.OWN, 0], np.int64)
    operands, wire_sizes = np.array([child.ctypes.data], np.int64), np.array([4], np.int64)
    arguments = np.zeros(kernels.FOLD_FIELDS, np.int64)
    for field, value in (
        (kernels.F_DTYPE, kernels.FLOAT32), (kernels.F_REDUCTION, kernels.SUM), (kernels.F_DIVISOR, 1),
        (kernels.F_ITEM_SIZE, 4), (kernels.F_STEPS, steps.ctypes.data), (kernels.F_NUM_STEPS, 1),
        (kernels.F_OPERANDS, operands.ctypes.data), (kernels.F_WIRE_SIZES, wire_sizes.ctypes.data),
        (kernels.F_OWN, own.ctypes.data), (kernels.F_DST, result.ctypes.data),
        (kernels.F_COUNT, len(own)), (kernels.F_WORK, work.ctypes.data),
    ):  # fmt: skip
        arguments[field] = value
    ctypes.CFUNCTYPE(None, ctypes.c_int64)(kernels.fold_address())(arguments.ctypes.data)
    if not np.array_equal(result, own + child):
        raise RuntimeError("the compiled fold gives wrong sums on this processor")


def _try_codecs() -> None:
    """Check the compiled codecs, on whole blocks and a part of one."""
    values = np.resize(np.array([0, 1, -2, 3, -4, 5, -6, 7], np.float32), 200)
    for codec in CODECS.values():
        if codec.code == RAW or codec.narrow_only:  # the latter are the others' twins
            continue
        code, decoded = np.zeros(codec.num_bytes(len(values)), np.uint8), np.zeros_like(values)
        work, f = np.zeros(codecs.WORK_BYTES, np.uint8), np.zeros(codecs.CODEC_FIELDS, np.int64)
        f[codecs.C_CODEC], f[codecs.C_COUNT], f[codecs.C_DIVISOR] = codec.code, len(values), 1
        f[codecs.C_CODE], f[codecs.C_WORK] = code.ctypes.data, work.ctypes.data
        for address, numbers in ((codecs.encode_address(), values), (codecs.decode_address(), decoded)):
            f[codecs.C_VALUES] = numbers.ctypes.data
            ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)(f.ctypes.data)
        if np.abs(decoded - values).max() > codec.largest_error * 7 or not (decoded[values == 0] == 0).all():
            raise RuntimeError(f"the compiled codec {codec.name} gives wrong numbers on this processor")
