"""Encoding and decoding of float32, compiled; `collectives/schedule/codec.py` defines the codecs.

The residual of the last time is added, the sum is encoded, what the other side will decode is written where it is
wanted, and what was lost becomes the new residual. All of that is done to a group of blocks before the next group is
looked at, so all but the first reading and the last writing stays in the first-level cache.
"""

from __future__ import annotations

import functools

import numba
import numpy as np
from numba import types

from collectives.engine.compiled import blocks, libc
from collectives.engine.compiled.jit import compiled_address, inline_jit, jit, void_pointer
from collectives.schedule.codec import BF16, BLOCK, CODECS, INT4, INT8, MAX_SCALE, MIN_SCALE, RAW

BLOCK_FLOATS = 4 * BLOCK  # bytes
GROUP = 16  # blocks that are encoded together: what they need beside the numbers stays in the first-level cache
# Offsets in the scratch of `encode`: a group's corrected numbers, their largest magnitudes, a block's result, and, for
# the last block if it is not full, its numbers, its residual and its code.
CORRECTED, LARGEST = 0, GROUP * BLOCK_FLOATS
RESULT = LARGEST + BLOCK_FLOATS
PADDED, PADDED_RESIDUAL, PADDED_CODE = (RESULT + k * BLOCK_FLOATS for k in (1, 2, 3))
WORK_BYTES = RESULT + 4 * BLOCK_FLOATS
MIN_BITS, MAX_BITS = (int(np.float32(value).view(np.int32)) >> 16 for value in (MIN_SCALE, MAX_SCALE))
NAN_SCALE = 0x7FC0
BF16_BYTES, INT8_BYTES, INT4_BYTES = (CODECS[name].block_bytes for name in ("bf16", "int8", "int4"))
INT8_LEVELS, INT4_LEVELS = (CODECS[name].levels for name in ("int8", "int4"))

# Below, what is neither BF16 nor INT8 is INT4. Tables have codes of these codecs alone, and RAW is never encoded.
assert {codec.code for codec in CODECS.values()} == {RAW, BF16, INT8, INT4}, "a codec without a branch in this file"

# The arguments of `encode` and `decode`, as the fields of an array of int64.
(
    C_CODEC,
    C_COUNT,  # elements
    C_VALUES,  # address of the numbers: read by `encode`, written by `decode`
    C_CODE,  # address of the encoded form
    C_RESIDUAL,  # address of the residual that `encode` reads and writes; 0 for none
    C_DIVISOR,
    C_DECODED,  # address where `encode` puts what others will decode; 0: not wanted
    C_WORK,  # address of WORK_BYTES of scratch
) = range(8)
CODEC_FIELDS = 8


@jit
def code_bytes(codec: int, n: int) -> int:
    """Bytes of n elements that are encoded together."""
    if codec == BF16:
        return BF16_BYTES * n
    return (n + BLOCK - 1) // BLOCK * (INT8_BYTES if codec == INT8 else INT4_BYTES)


@jit
def encode(codec: int, values: int, residual: int, divisor: int, code: int, decoded: int, n: int, work: int) -> None:
    """Encode x = (values + residual) / divisor; n elements, all at addresses.

    Args:
        residual: in the end holds (x - decode(encode(x))) * divisor, 0 where that is not finite. Address 0: there is
            none.
        decoded: gets decode(encode(x)). Address 0: not wanted.
        work: WORK_BYTES of scratch.
    """
    whole, last = n // BLOCK, n % BLOCK
    num_bytes = code_bytes(codec, BLOCK)
    while whole > 0:
        count = min(whole, GROUP)
        _encode_group(codec, count, values, residual, divisor, code, decoded, work)
        values, code, whole = values + count * BLOCK_FLOATS, code + count * num_bytes, whole - count
        residual += count * BLOCK_FLOATS if residual != 0 else 0
        decoded += count * BLOCK_FLOATS if decoded != 0 else 0
    if last > 0:
        padded, padded_residual, padded_code = work + PADDED, work + PADDED_RESIDUAL, work + PADDED_CODE
        zeros = numba.carray(void_pointer(padded), (2 * BLOCK,), np.float32)
        zeros[:] = 0
        libc.memmove(padded, values, 4 * last)
        if residual != 0:
            libc.memmove(padded_residual, residual, 4 * last)
        _encode_group(codec, 1, padded, padded_residual if residual != 0 else 0, divisor, padded_code, padded, work)
        libc.memmove(code, padded_code, code_bytes(codec, last))
        if residual != 0:
            libc.memmove(residual, padded_residual, 4 * last)
        if decoded != 0:
            libc.memmove(decoded, padded, 4 * last)


@jit
def _encode_group(
    codec: int, count: int, values: int, residual: int, divisor: int, code: int, decoded: int, work: int
) -> None:
    """Encode up to GROUP blocks.

    A block's scale hangs on all its numbers, through a reduction and two divisions: about a hundred cycles in which a
    processor that takes block after block has little else to do. All reductions first, then all that needs the scales:
    within each loop the blocks do not wait for each other.
    """
    largest = numba.carray(void_pointer(work + LARGEST), (GROUP,), np.int32)
    corrected = values if residual == 0 and divisor == 1 else work + CORRECTED
    for b in range(count):
        at = b * BLOCK_FLOATS
        if residual != 0:
            largest[b] = blocks.add(values + at, residual + at, corrected + at)
        if divisor > 1:
            summed = values if residual == 0 else corrected
            largest[b] = blocks.divide(summed + at, np.float32(divisor), corrected + at)
        elif residual == 0 and codec != BF16:
            largest[b] = blocks.largest(values + at)
    num_bytes = code_bytes(codec, BLOCK)
    for b in range(count):
        at = b * BLOCK_FLOATS
        own_residual = residual + at if residual != 0 else 0
        own_decoded = decoded + at if decoded != 0 else 0
        own_code = code + b * num_bytes
        _encode_block(codec, corrected + at, int(largest[b]), own_residual, divisor, own_code, own_decoded, work)


@inline_jit
def _encode_block(
    codec: int, values: int, largest: int, residual: int, divisor: int, code: int, decoded: int, work: int
) -> None:
    wants_more = residual != 0 or decoded != 0
    result = decoded if decoded != 0 else work + RESULT
    if codec == BF16:
        blocks.to_bfloat16(values, code)
    elif _quantize(
        codec, values, largest, divisor, code, result, residual if residual != 0 else work + RESULT, wants_more
    ):
        return
    if wants_more:
        _decode_block(codec, code, result)
        if residual != 0:
            blocks.remainder(values, result, np.float32(divisor), residual)


@inline_jit
def _quantize(
    codec: int, values: int, largest: int, divisor: int, code: int, decoded: int, rest: int, wants_more: bool
) -> bool:
    """A scale and whole numbers; where there is no scale that would do, zeros.

    Args:
        largest: bits of the largest magnitude among the values.
        decoded, rest: get what the code stands for, and what was lost times the divisor, if the caller `wants_more`.

    Returns:
        Whether all that was wanted is written; if not, the code is.
    """
    levels = INT8_LEVELS if codec == INT8 else INT4_LEVELS
    scale = numba.carray(void_pointer(code), (1,), np.uint16)
    exact = np.int64(blocks.bits_of(blocks.float_of(largest) / np.float32(levels)))
    bits = (exact + 0x7FFF + ((exact >> 16) & 1)) >> 16
    if largest >= blocks.INFINITY or bits >= MAX_BITS or bits < MIN_BITS:
        scale[0] = 0 if bits < MIN_BITS else NAN_SCALE
        numbers = numba.carray(void_pointer(code + 2), (code_bytes(codec, BLOCK) - 2,), np.uint8)
        numbers[:] = 0
        return False
    scale[0] = bits
    step = blocks.float_of(bits << 16)
    inverse, factor = np.float32(1) / step, np.float32(divisor)
    if not wants_more:
        if codec == INT8:
            blocks.to_bytes(values, inverse, code + 2)
        else:
            blocks.to_nibbles(values, inverse, code + 2)
    elif codec == INT8:
        blocks.to_bytes_and_rest(values, inverse, step, factor, code + 2, decoded, rest)
    else:
        blocks.to_nibbles_and_rest(values, inverse, step, factor, code + 2, decoded, rest)
    return True


@jit
def decode(codec: int, code: int, values: int, n: int, work: int) -> None:
    """Decode n elements from address `code` to address `values`."""
    whole, last = n // BLOCK, n % BLOCK
    num_bytes = code_bytes(codec, BLOCK)
    for _ in range(whole):
        _decode_block(codec, code, values)
        values, code = values + BLOCK_FLOATS, code + num_bytes
    if last > 0:
        padded_code = work + BLOCK_FLOATS
        libc.memmove(padded_code, code, code_bytes(codec, last))
        _decode_block(codec, padded_code, work)
        libc.memmove(values, work, 4 * last)


@jit
def _decode_block(codec: int, code: int, values: int) -> None:
    if codec == BF16:
        blocks.from_bfloat16(code, values)
        return
    bits = np.int64(numba.carray(void_pointer(code), (1,), np.uint16)[0])
    scale = blocks.float_of(bits << 16)
    if codec == INT8:
        blocks.from_bytes(code + 2, scale, values)
    else:
        blocks.from_nibbles(code + 2, scale, values)


@functools.cache
def encode_address() -> int:
    """Where the compiled `encode` is; it is called with the address of the fields above."""
    return compiled_address(_encode, types.void(types.int64))


@functools.cache
def decode_address() -> int:
    """Where the compiled `decode` is."""
    return compiled_address(_decode, types.void(types.int64))


def _encode(arguments: int) -> None:
    f = numba.carray(void_pointer(arguments), (CODEC_FIELDS,), np.int64)
    encode(f[C_CODEC], f[C_VALUES], f[C_RESIDUAL], f[C_DIVISOR], f[C_CODE], f[C_DECODED], f[C_COUNT], f[C_WORK])


def _decode(arguments: int) -> None:
    f = numba.carray(void_pointer(arguments), (CODEC_FIELDS,), np.int64)
    decode(f[C_CODEC], f[C_CODE], f[C_VALUES], f[C_COUNT], f[C_WORK])
