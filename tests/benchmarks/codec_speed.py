"""Speed of the compiled codecs on one core, beside memcpy: ``python -m tests.benchmarks.codec_speed``.

Speeds are bytes of float32 per second, the best of several runs, on buffers of one slice, aligned as the engine's slots
are. (Without that, some processors copy ten times slower if the target lies a few bytes after the source in a page.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from collectives.engine.compiled import codecs
from collectives.options import Options
from collectives.schedule.codec import CODECS, RAW

RUNS, CALLS = 15, 200


def gb_per_s(call: Callable[[], object], num_bytes: int) -> float:
    best = float("inf")
    for _ in range(RUNS):
        began = perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, (perf_counter() - began) / CALLS)
    return num_bytes / best / 1e9


def aligned(num_bytes: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    room = np.zeros(num_bytes + 64, np.uint8)
    first = -room.ctypes.data % 64
    return room[first : first + num_bytes].view(np.float32)


def main() -> None:
    num_bytes = Options().slice_bytes
    values, residual, decoded, code, work = (aligned(num_bytes) for _ in range(5))
    values[:] = np.random.default_rng(0).standard_normal(len(values))
    encode, decode = (
        ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)
        for address in (codecs.encode_address(), codecs.decode_address())
    )
    f = np.zeros(codecs.CODEC_FIELDS, np.int64)
    f[codecs.C_COUNT], f[codecs.C_DIVISOR] = len(values), 1
    f[codecs.C_CODE], f[codecs.C_WORK] = code.ctypes.data, work.ctypes.data
    at = f.ctypes.data
    to, source = decoded.ctypes.data, values.ctypes.data
    memcpy = gb_per_s(lambda: ctypes.memmove(to, source, num_bytes), num_bytes)
    print(f"{num_bytes} bytes of float32; memcpy {memcpy:.1f} GB/s")
    print(f"{'codec':8}{'encode':>10}{'with residual':>16}{'decode':>10}   GB/s")
    for codec in CODECS.values():
        if codec.code == RAW or codec.narrow_only:
            continue
        f[codecs.C_CODEC], f[codecs.C_VALUES], f[codecs.C_RESIDUAL] = codec.code, values.ctypes.data, 0
        plain = gb_per_s(lambda: encode(at), num_bytes)
        f[codecs.C_RESIDUAL] = residual.ctypes.data
        with_residual = gb_per_s(lambda: encode(at), num_bytes)
        f[codecs.C_VALUES] = decoded.ctypes.data
        back = gb_per_s(lambda: decode(at), num_bytes)
        print(f"{codec.name:8}{plain:>10.1f}{with_residual:>16.1f}{back:>10.1f}")


if __name__ == "__main__":
    main()
