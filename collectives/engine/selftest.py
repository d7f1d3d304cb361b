"""Compile the engine, once per machine, and check what it computes on this processor.

Compiling takes the better part of a minute, so of several processes that start at once one compiles and the others
wait. The folder of compiled code has a lock for that, and a mark once all is there: after that nobody locks. The lock
saves work and is needed for nothing else, since Numba replaces files as a whole. So one that cannot be had, or that a
stopped process holds, costs a second compilation and never the start.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collectives.engine import table_builder
from collectives.engine.compiled import codecs, kernels
from collectives.engine.compiled.connections import make_net
from collectives.engine.compiled.jit import compiled_folder
from collectives.engine.compiled.loop import Entry
from collectives.engine.compiled.status import DONE
from collectives.planning.planner import plan
from collectives.schedule.codec import CODECS, RAW
from collectives.schedule.op import OpSpec
from collectives.topology import Topology

logger = logging.getLogger(__name__)
Array = npt.NDArray[Any]
LOCK, COMPLETE = "lock", "complete"
PATIENCE_S = 240.0  # several times what compiling takes
ASK_S = 0.05


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
    folder = compiled_folder()
    is_complete = (folder / COMPLETE).exists()
    with contextlib.nullcontext() if is_complete else _alone(folder):
        _try_copy()
        _try_fold()
        _try_codecs()
        if not is_complete:
            with contextlib.suppress(OSError):  # a full disk: the next process compiles what is missing
                (folder / COMPLETE).touch()
    return time.perf_counter() - started


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let no other process compile meanwhile; waits until they have compiled, or PATIENCE_S."""
    with contextlib.ExitStack() as held:
        try:
            lock = held.enter_context(open(folder / LOCK, "w"))
            if not _locked(lock.fileno(), folder):
                logger.warning("%s: compiling without it; another process has held it for %g s", lock.name, PATIENCE_S)
        except OSError as error:
            logger.warning("compiling without a lock, so other processes may compile, too: %s", error)
        yield


def _locked(lock: int, folder: Path) -> bool:
    """Whether the lock was had, or is needed no more."""
    deadline = time.monotonic() + PATIENCE_S
    while not (folder / COMPLETE).exists():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(ASK_S)
    return True


def _try_copy() -> None:
    """Check the compiled loop, on an op of one rank."""
    spec = OpSpec("all_reduce", "float32", "sum", None, (1,))
    forest = plan(Topology.from_hosts(["alone"]), "all_reduce", 4).forest
    layout = table_builder.build(forest, spec, 0, [(0, 0)], slice_bytes=1024, window_bytes=1024)
    buffers = np.array([7.0, 0.0], np.float32)
    layout.set_run(0, 0, buffers.ctypes.data, buffers.ctypes.data + 4, 0, 10**9)
    if Entry(make_net([], [-1], -1), layout.table).advance() != DONE or buffers[1] != 7.0:
        raise RuntimeError(f"the compiled loop copied {buffers[0]} as {buffers[1]}")


def _try_fold() -> None:
    """Check the compiled fold, on numbers that show any misplaced element."""
    own, child = np.arange(5000, dtype=np.float32), np.arange(5000, dtype=np.float32) * 10000
    if not np.array_equal(_folded(own, child, 4), own + child):
        raise RuntimeError("the compiled fold gives wrong sums on this processor")


def _folded(own: Array, child: Array, wire_size: int, codec: int = RAW) -> Array:
    """The sum of own float32 and a child's, which may be encoded."""
    result, work = np.zeros_like(own), np.zeros(kernels.WORK_BYTES, np.uint8)
    steps = np.array([kernels.DST, kernels.OWN, 0], np.int64)
    operands, wire_sizes = np.array([child.ctypes.data], np.int64), np.array([wire_size], np.int64)
    code_work, code = np.zeros(codecs.WORK_BYTES, np.uint8), np.zeros(codecs.CODEC_FIELDS, np.int64)
    code[codecs.C_WORK] = code_work.ctypes.data
    arguments = np.zeros(kernels.FOLD_FIELDS, np.int64)
    for field, value in (
        (kernels.F_DTYPE, kernels.FLOAT32), (kernels.F_REDUCTION, kernels.SUM), (kernels.F_DIVISOR, 1),
        (kernels.F_ITEM_SIZE, 4), (kernels.F_STEPS, steps.ctypes.data), (kernels.F_NUM_STEPS, 1),
        (kernels.F_OPERANDS, operands.ctypes.data), (kernels.F_WIRE_SIZES, wire_sizes.ctypes.data),
        (kernels.F_OWN, own.ctypes.data), (kernels.F_DST, result.ctypes.data),
        (kernels.F_COUNT, len(own)), (kernels.F_WORK, work.ctypes.data),
        (kernels.F_CODEC, codec), (kernels.F_DECODE, codecs.decode_address()), (kernels.F_CODE, code.ctypes.data),
    ):  # fmt: skip
        arguments[field] = value
    ctypes.CFUNCTYPE(None, ctypes.c_int64)(kernels.fold_address())(arguments.ctypes.data)
    return result


def _try_codecs() -> None:
    """Check the compiled codecs, on whole blocks and a part of one, and the fold of what is encoded."""
    values = np.resize(np.array([0, 1, -2, 3, -4, 5, -6, 7], np.float32), 5000)
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
        if not np.array_equal(_folded(values, code, kernels.ENCODED, codec.code), values + decoded):
            raise RuntimeError(f"the compiled fold of {codec.name} gives wrong sums on this processor")
