"""Encoding and decoding of float32, compiled; `collectives/schedule/codec.py` defines the codecs.

One pass over the numbers does all: the residual of the last time is added, the sum is encoded, what the other side will
decode is written where it is wanted, and what was lost becomes the new residual. Each step is done to a block of 64
numbers before the next block is looked at, so all but the first reading and the last writing stays in the
first-level cache.
"""

from __future__ import annotations

import functools

import numba
import numpy as np
from numba import types

from collectives.engine.compiled import blocks, libc
from collectives.engine.compiled.jit import compiled_address, jit, void_pointer
from collectives.schedule.codec import BF16, BLOCK, CODECS, INT8, MAX_SCALE, MIN_SCALE

BLOCK_FLOATS = 4 * BLOCK  # bytes
WORK_BYTES = 5 * BLOCK_FLOATS
MIN_BITS, MAX_BITS = (int(np.float32(value).view(np.int32)) >> 16 for value in (MIN_SCALE, MAX_SCALE))
NAN_SCALE = 0x7FC0
BF16_BYTES, INT8_BYTES, INT4_BYTES = (CODECS[name].block_bytes for name in ("bf16", "int8", "int4"))
INT8_LEVELS, INT4_LEVELS = (CODECS[name].levels for name in ("int8", "int4"))

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
    for _ in range(whole):
        _encode_block(codec, values, residual, divisor, code, decoded, work)
        values, code = values + BLOCK_FLOATS, code + num_bytes
        residual += BLOCK_FLOATS if residual != 0 else 0
        decoded += BLOCK_FLOATS if decoded != 0 else 0
    if last > 0:
        padded, padded_residual, padded_code = work + 2 * BLOCK_FLOATS, work + 3 * BLOCK_FLOATS, work + 4 * BLOCK_FLOATS
        zeros = numba.carray(void_pointer(padded), (2 * BLOCK,), np.float32)
        zeros[:] = 0
        libc.memmove(padded, values, 4 * last)
        if residual != 0:
            libc.memmove(padded_residual, residual, 4 * last)
        _encode_block(codec, padded, padded_residual if residual != 0 else 0, divisor, padded_code, padded, work)
        libc.memmove(code, padded_code, code_bytes(codec, last))
        if residual != 0:
            libc.memmove(residual, padded_residual, 4 * last)
        if decoded != 0:
            libc.memmove(decoded, padded, 4 * last)


@jit
def _encode_block(codec: int, values: int, residual: int, divisor: int, code: int, decoded: int, work: int) -> None:
    if residual != 0:
        blocks.add(values, residual, work)
        values = work
    if divisor > 1:
        blocks.divide(values, np.float32(divisor), work)
        values = work
    if codec == BF16:
        blocks.to_bfloat16(values, code)
    else:
        _quantise(codec, values, code)
    if residual != 0 or decoded != 0:
        result = work + BLOCK_FLOATS
        _decode_block(codec, code, result)
        if residual != 0:
            blocks.remainder(values, result, np.float32(divisor), residual)
        if decoded != 0:
            libc.memmove(decoded, result, BLOCK_FLOATS)


@jit
def _quantise(codec: int, values: int, code: int) -> None:
    """A scale and whole numbers; where there is no scale that would do, zeros."""
    levels = INT8_LEVELS if codec == INT8 else INT4_LEVELS
    scale = numba.carray(void_pointer(code), (1,), np.uint16)
    largest = np.int64(blocks.largest(values))
    exact = np.int64(blocks.bits_of(blocks.float_of(largest) / np.float32(levels)))
    bits = (exact + 0x7FFF + ((exact >> 16) & 1)) >> 16
    if largest >= blocks.INFINITY or bits >= MAX_BITS or bits < MIN_BITS:
        scale[0] = 0 if bits < MIN_BITS else NAN_SCALE
        numbers = numba.carray(void_pointer(code + 2), (code_bytes(codec, BLOCK) - 2,), np.uint8)
        numbers[:] = 0
        return
    scale[0] = bits
    inverse = np.float32(1) / blocks.float_of(bits << 16)
    if codec == INT8:
        blocks.to_bytes(values, inverse, code + 2)
    else:
        blocks.to_nibbles(values, inverse, code + 2)


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
