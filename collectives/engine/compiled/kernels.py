"""Folding: what is done to the numbers.

A fold reads the contributions of one slice (own and children's), runs the tree's steps on them and writes one result.
It goes chunk by chunk, small enough that all intermediate values stay in the first-level cache, so each contribution
is read from memory once and the result written once, however many there are. Encoded slices are decoded chunk by
chunk, too: as numbers they would fill the cache several times.

16-bit floats are widened to float32 on reading; a partial sum that travels further stays float32; only the root rounds.
MIN and MAX of floats hand NaN on. Integers wrap around; their average is the (wrapped) sum divided, toward zero.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types

from collectives.engine.compiled.codecs import C_CODE, C_CODEC, C_COUNT, C_VALUES, CODEC_FIELDS, code_bytes
from collectives.engine.compiled.jit import call, compiled_address, jit, void_pointer
from collectives.schedule.codec import BLOCK

# Codes of dtypes and reductions, as they stand in a table.
DTYPE_CODE = {
    "float32": 0,
    "float64": 1,
    "bfloat16": 2,
    "float16": 3,
    "int8": 4,
    "uint8": 5,
    "int16": 6,
    "int32": 7,
    "int64": 8,
}
SUM, MIN, MAX, PRODUCT, BAND, BOR, BXOR = range(7)
REDUCTION_CODE = {
    "sum": SUM,
    "avg": SUM,
    "min": MIN,
    "max": MAX,
    "product": PRODUCT,
    "band": BAND,
    "bor": BOR,
    "bxor": BXOR,
}
# Bool lies in memory as bytes 0 and 1: its sum and maximum are "or", its product and minimum "and".
BOOL_REDUCTION_CODE = {"sum": BOR, "max": BOR, "bor": BOR, "product": BAND, "min": BAND, "band": BAND, "bxor": BXOR}

FLOAT32, FLOAT64, BFLOAT16, FLOAT16, INT8, UINT8, INT16, INT32, INT64 = range(9)

# Operands of a fold step other than a child's index.
OWN, ACC, TMP, DST, TMP2 = -1, -2, -3, -4, -5

CHUNK = 2048  # elements; the buffers that a fold of float32 touches are 32 KiB at most
assert CHUNK % BLOCK == 0, "a chunk of code begins with a block"
BUFFER_BYTES = CHUNK * 8
WORK_BYTES = 5 * BUFFER_BYTES  # three registers, two widened operands


@jit
def _fold_floats(dst: Any, a: Any, b: Any, reduction: int) -> None:
    n = len(dst)
    if reduction == SUM:
        for i in range(n):
            dst[i] = a[i] + b[i]
    elif reduction == PRODUCT:
        for i in range(n):
            dst[i] = a[i] * b[i]
    elif reduction == MIN:
        for i in range(n):
            x, y = a[i], b[i]
            dst[i] = x if (x < y or x != x) else y
    else:
        for i in range(n):
            x, y = a[i], b[i]
            dst[i] = x if (x > y or x != x) else y


@jit
def _fold_integers(dst: Any, a: Any, b: Any, reduction: int) -> None:
    n = len(dst)
    if reduction == SUM:
        for i in range(n):
            dst[i] = a[i] + b[i]
    elif reduction == PRODUCT:
        for i in range(n):
            dst[i] = a[i] * b[i]
    elif reduction == MIN:
        for i in range(n):
            dst[i] = a[i] if a[i] < b[i] else b[i]
    elif reduction == MAX:
        for i in range(n):
            dst[i] = a[i] if a[i] > b[i] else b[i]
    elif reduction == BAND:
        for i in range(n):
            dst[i] = a[i] & b[i]
    elif reduction == BOR:
        for i in range(n):
            dst[i] = a[i] | b[i]
    else:
        for i in range(n):
            dst[i] = a[i] ^ b[i]


@jit
def _divide_floats(values: Any, divisor: int) -> None:
    for i in range(len(values)):
        values[i] = values[i] / values.dtype.type(divisor)


@jit
def _divide_integers(dtype: int, address: int, divisor: int, n: int) -> None:
    """One plain loop for all integers: averages of them are rare, and five loops would be slow to compile."""
    p, shape = void_pointer(address), (n,)
    int8, uint8 = numba.carray(p, shape, np.int8), numba.carray(p, shape, np.uint8)
    int16, int32 = numba.carray(p, shape, np.int16), numba.carray(p, shape, np.int32)
    int64 = numba.carray(p, shape, np.int64)
    for i in range(n):
        if dtype == INT8:
            int8[i] = _toward_zero(np.int64(int8[i]), divisor)
        elif dtype == UINT8:
            uint8[i] = _toward_zero(np.int64(uint8[i]), divisor)
        elif dtype == INT16:
            int16[i] = _toward_zero(np.int64(int16[i]), divisor)
        elif dtype == INT32:
            int32[i] = _toward_zero(np.int64(int32[i]), divisor)
        else:
            int64[i] = _toward_zero(int64[i], divisor)


@jit
def _toward_zero(value: int, divisor: int) -> int:
    return value // divisor if value >= 0 else -((-value) // divisor)


@jit
def widen(dtype: int, source: int, target: int, n: int) -> None:
    """Read n bfloat16 or float16 at address `source` as float32 into address `target`. Exact, also for subnormals."""
    half = numba.carray(void_pointer(source), (n,), np.uint16)
    bits = numba.carray(void_pointer(target), (n,), np.uint32)
    if dtype == BFLOAT16:
        for i in range(n):
            bits[i] = np.uint32(half[i]) << np.uint32(16)
        return
    # float16: move exponent and mantissa into place, then scale by 2**112, which also normalises subnormals.
    values = numba.carray(void_pointer(target), (n,), np.float32)
    for i in range(n):
        bits[i] = (np.uint32(half[i]) & np.uint32(0x7FFF)) << np.uint32(13)
    scale = np.float32(2.0**112)
    for i in range(n):
        values[i] = values[i] * scale
    for i in range(n):
        h = np.uint32(half[i])
        special = np.uint32(0x7F800000) if (h & np.uint32(0x7C00)) == np.uint32(0x7C00) else np.uint32(0)
        bits[i] = bits[i] | special | ((h & np.uint32(0x8000)) << np.uint32(16))


@jit
def narrow(dtype: int, source: int, target: int, n: int) -> None:
    """Round n float32 at address `source` to nearest even, as bfloat16 or float16, to address `target`."""
    bits = numba.carray(void_pointer(source), (n,), np.uint32)
    half = numba.carray(void_pointer(target), (n,), np.uint16)
    if dtype == BFLOAT16:
        for i in range(n):
            x = bits[i]
            rounded = (x + np.uint32(0x7FFF) + ((x >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            quiet_nan = (x >> np.uint32(16)) | np.uint32(0x40)
            is_nan = (x & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            half[i] = np.uint16(quiet_nan if is_nan else rounded)
        return
    for i in range(n):
        half[i] = _round_to_half(bits[i])


@jit
def _round_to_half(x: int) -> int:
    """float32 bits to float16 bits, to nearest even: IEEE 754 conversion in integers."""
    sign = (x >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = np.int64(x & np.uint32(0x7FFFFFFF))
    # Normal range: drop 13 bits with rounding; the carry may run into the exponent, up to infinity.
    normal = (magnitude - (112 << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13
    # Subnormal range: the value in units of 2**-24 is the mantissa shifted right by (126 - exponent).
    shift = min(max(126 - (magnitude >> 23), 1), 25)
    mantissa = (magnitude & 0x7FFFFF) | 0x800000
    subnormal = (mantissa + (np.int64(1) << (shift - 1)) - 1 + ((mantissa >> shift) & 1)) >> shift
    result = normal if magnitude >= (113 << 23) else subnormal
    result = 0x7C00 if magnitude >= 0x477FF000 else result  # rounds to 65520 or more: infinity
    result = 0x7E00 if magnitude > 0x7F800000 else result
    return np.uint16(np.int64(sign) | result)


@jit
def combine(dtype: int, reduction: int, dst: int, a: int, b: int, n: int) -> None:
    """dst = a (reduction) b for n elements at three addresses; dst may be a or b. 16-bit floats: as float32."""
    d, x, y = void_pointer(dst), void_pointer(a), void_pointer(b)
    shape = (n,)
    if dtype in (FLOAT32, BFLOAT16, FLOAT16):
        _fold_floats(numba.carray(d, shape, np.float32), numba.carray(x, shape, np.float32),
                     numba.carray(y, shape, np.float32), reduction)  # fmt: skip
    elif dtype == FLOAT64:
        _fold_floats(numba.carray(d, shape, np.float64), numba.carray(x, shape, np.float64),
                     numba.carray(y, shape, np.float64), reduction)  # fmt: skip
    elif dtype == INT8:
        _fold_integers(numba.carray(d, shape, np.int8), numba.carray(x, shape, np.int8),
                       numba.carray(y, shape, np.int8), reduction)  # fmt: skip
    elif dtype == UINT8:
        _fold_integers(numba.carray(d, shape, np.uint8), numba.carray(x, shape, np.uint8),
                       numba.carray(y, shape, np.uint8), reduction)  # fmt: skip
    elif dtype == INT16:
        _fold_integers(numba.carray(d, shape, np.int16), numba.carray(x, shape, np.int16),
                       numba.carray(y, shape, np.int16), reduction)  # fmt: skip
    elif dtype == INT32:
        _fold_integers(numba.carray(d, shape, np.int32), numba.carray(x, shape, np.int32),
                       numba.carray(y, shape, np.int32), reduction)  # fmt: skip
    else:
        _fold_integers(numba.carray(d, shape, np.int64), numba.carray(x, shape, np.int64),
                       numba.carray(y, shape, np.int64), reduction)  # fmt: skip


@jit
def divide(dtype: int, values: int, divisor: int, n: int) -> None:
    """Divide n elements at an address by a positive whole number. 16-bit floats: as float32."""
    p, shape = void_pointer(values), (n,)
    if dtype in (FLOAT32, BFLOAT16, FLOAT16):
        _divide_floats(numba.carray(p, shape, np.float32), divisor)
    elif dtype == FLOAT64:
        _divide_floats(numba.carray(p, shape, np.float64), divisor)
    else:
        _divide_integers(dtype, values, divisor, n)


# The arguments of `_fold`, as the fields of an array of int64.
(
    F_DTYPE,
    F_REDUCTION,
    F_DIVISOR,  # the result is divided by it where it is above 1 (average, at the root)
    F_ITEM_SIZE,
    F_STEPS,  # address of the tree's fold steps, int64 triples (dst, a, b), and their number
    F_NUM_STEPS,
    F_OPERANDS,  # address of an int64 for each child: where its slice lies
    F_WIRE_SIZES,  # and of one for each child: bytes of an element there, or ENCODED
    F_OWN,  # address of the own contribution
    F_DST,  # address of the result
    F_DST_IS_PARTIAL,  # 1: it travels on as a partial sum (float32 for 16-bit types)
    F_COUNT,  # elements
    F_WORK,  # address of WORK_BYTES of scratch
    F_CODEC,  # of the slices that are encoded
    F_DECODE,  # address of the compiled `codecs.decode`
    F_CODE,  # and of its arguments, of which C_WORK is set
) = range(16)
FOLD_FIELDS = 16
ENCODED = 0


@functools.cache
def fold_address() -> int:
    """Address of the compiled `_fold`."""
    return compiled_address(_fold, types.void(types.int64))


def _fold(arguments: int) -> None:
    """Run a tree's fold steps on the elements of one slice; `arguments` is the address of the fields above."""
    f = numba.carray(void_pointer(arguments), (FOLD_FIELDS,), np.int64)
    # Nothing says how many children there are: an operand's index is always below that number.
    operands = numba.carray(void_pointer(f[F_OPERANDS]), (1 << 20,), np.int64)
    wire_sizes = numba.carray(void_pointer(f[F_WIRE_SIZES]), (1 << 20,), np.int64)
    steps = numba.carray(void_pointer(f[F_STEPS]), (f[F_NUM_STEPS], 3), np.int64)
    left, right = f[F_WORK] + 3 * BUFFER_BYTES, f[F_WORK] + 4 * BUFFER_BYTES
    start = 0
    while start < f[F_COUNT]:
        m = min(CHUNK, f[F_COUNT] - start)
        for s in range(len(steps)):
            a = _operand_at(f, operands, wire_sizes, steps[s, 1], start, m, left)
            b = _operand_at(f, operands, wire_sizes, steps[s, 2], start, m, right)
            target = _target_at(f, steps[s, 0], start)
            combine(f[F_DTYPE], f[F_REDUCTION], target, a, b, m)
            if steps[s, 0] == DST:
                _finish(f, target, start, m)
        start += m


@jit
def _register_at(work: int, operand: int) -> int:
    """Address of a register's chunk; 0 for operands that are no register."""
    if operand == ACC:
        return work
    if operand == TMP:
        return work + BUFFER_BYTES
    if operand == TMP2:
        return work + 2 * BUFFER_BYTES
    return 0


@jit
def _operand_at(f: Any, operands: Any, wire_sizes: Any, operand: int, start: int, m: int, widened: int) -> int:
    """Address of m elements of an operand from element `start` on; 16-bit floats and code become float32 first, at
    `widened`."""
    register = _register_at(f[F_WORK], operand)
    if register != 0:
        return register
    size = f[F_ITEM_SIZE] if operand == OWN else wire_sizes[operand]
    if size == ENCODED:
        c = numba.carray(void_pointer(f[F_CODE]), (CODEC_FIELDS,), np.int64)
        c[C_CODEC], c[C_COUNT], c[C_VALUES] = f[F_CODEC], m, widened
        c[C_CODE] = operands[operand] + code_bytes(f[F_CODEC], start)
        call(f[F_DECODE], f[F_CODE])
        return widened
    address = (f[F_OWN] if operand == OWN else operands[operand]) + start * size
    if _is_half(f[F_DTYPE]) and size == 2:
        widen(f[F_DTYPE], address, widened, m)
        return widened
    return address


@jit
def _target_at(f: Any, target: int, start: int) -> int:
    """Where a step writes: a register, or the result unless that must be rounded first."""
    register = _register_at(f[F_WORK], target)
    if register != 0:
        return register
    if not _is_half(f[F_DTYPE]):
        return f[F_DST] + start * f[F_ITEM_SIZE]
    return f[F_DST] + start * 4 if f[F_DST_IS_PARTIAL] == 1 else f[F_WORK]


@jit
def _finish(f: Any, values: int, start: int, m: int) -> None:
    """After the last step: the average, and rounding. A sum is divided before it is rounded, so it rounds once."""
    if f[F_DIVISOR] > 1:
        divide(f[F_DTYPE], values, f[F_DIVISOR], m)
    if _is_half(f[F_DTYPE]) and f[F_DST_IS_PARTIAL] == 0:
        narrow(f[F_DTYPE], values, f[F_DST] + start * 2, m)


@jit
def _is_half(dtype: int) -> bool:
    return dtype in (BFLOAT16, FLOAT16)
