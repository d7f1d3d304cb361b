"""Arithmetic on blocks of 64 float32 as LLVM vectors, for `codecs.py`.

As plain loops these would need LLVM to find out, for each block, that what is written is not what is read. As vectors
they need no such proof; LLVM splits them into what the processor has. Arguments are addresses (int64) unless said
otherwise; nothing needs to be aligned, and what is written may be what is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from collectives.schedule.codec import BLOCK

MAGNITUDE, INFINITY = 0x7FFFFFFF, 0x7F800000  # of a float32: all bits but the sign, and the least of what is not finite
# Added to a float32 of magnitude below 2**22, it leaves the nearest whole number, ties to even, in the low bits.
ROUNDING = 1.5 * 2.0**23

_INT8, _INT16, _INT32, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_BYTES, _HALVES, _INTS, _FLOATS = (ir.VectorType(kind, BLOCK) for kind in (_INT8, _INT16, _INT32, _FLOAT))
_NIBBLES, _HALF_INTS = ir.VectorType(_INT8, BLOCK // 2), ir.VectorType(_INT32, BLOCK // 2)


@intrinsic  # type: ignore[untyped-decorator]
def add(typingctx: Any, a: Any, b: Any, out: Any) -> Any:
    """out = a + b; returns `largest` of it"""

    def code(build: Any, at: Sequence[Any]) -> Any:
        total = build.fadd(_load(build, at[0], _FLOATS), _load(build, at[1], _FLOATS))
        _store(build, total, at[2])
        return _largest(build, total)

    return _compiled(code, types.int32, types.int64, types.int64, types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def divide(typingctx: Any, a: Any, divisor: Any, out: Any) -> Any:
    """out = a / divisor, a float32; returns `largest` of it"""

    def code(build: Any, at: Sequence[Any]) -> Any:
        quotient = build.fdiv(_load(build, at[0], _FLOATS), _spread(build, at[1]))
        _store(build, quotient, at[2])
        return _largest(build, quotient)

    return _compiled(code, types.int32, types.int64, types.float32, types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def remainder(typingctx: Any, a: Any, b: Any, factor: Any, out: Any) -> Any:
    """out = (a - b) * factor, a float32; 0 where b is not finite"""

    def code(build: Any, at: Sequence[Any]) -> None:
        a, b = _load(build, at[0], _FLOATS), _load(build, at[1], _FLOATS)
        rest = build.fmul(build.fsub(a, b), _spread(build, at[2]))
        finite = build.icmp_signed("<", _magnitudes(build, b), _all(_INTS, INFINITY))
        _store(build, build.select(finite, rest, _all(_FLOATS, 0.0)), at[3])

    return _compiled(code, types.void, types.int64, types.int64, types.float32, types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def largest(typingctx: Any, a: Any) -> Any:
    """The largest magnitude, as the bits of a float32; these are ordered as their numbers, then Inf, then NaN."""

    return _compiled(lambda build, at: _largest(build, _load(build, at[0], _FLOATS)), types.int32, types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def to_bytes(typingctx: Any, a: Any, inverse: Any, out: Any) -> Any:
    """out = a * inverse (a float32), rounded to nearest even, as int8"""

    def code(build: Any, at: Sequence[Any]) -> None:
        _store(build, _low_bytes(build, _rounded(build, _load(build, at[0], _FLOATS), at[1])), at[2])

    return _compiled(code, types.void, types.int64, types.float32, types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def from_bytes(typingctx: Any, a: Any, scale: Any, out: Any) -> Any:
    """out = the int8 of a * scale, a float32"""

    def code(build: Any, at: Sequence[Any]) -> None:
        _store_scaled(build, build.sext(_load(build, at[0], _BYTES), _INTS), at[1], at[2])

    return _compiled(code, types.void, types.int64, types.float32, types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def to_nibbles(typingctx: Any, a: Any, inverse: Any, out: Any) -> Any:
    """As `to_bytes`, in four bits each: byte j has element j in its low half and element j + 32 in its high one."""

    def code(build: Any, at: Sequence[Any]) -> None:
        _store(build, _packed(build, _rounded(build, _load(build, at[0], _FLOATS), at[1])), at[2])

    return _compiled(code, types.void, types.int64, types.float32, types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def to_bytes_and_rest(
    typingctx: Any, a: Any, inverse: Any, scale: Any, factor: Any, out: Any, decoded: Any, rest: Any
) -> Any:
    """As `to_bytes`; also decoded = `from_bytes` of out, and rest = (a - decoded) * factor. All three are float32s.

    One pass over a: what was rounded is decoded from registers. Only for a scale that is finite.
    """
    return _with_rest(_low_bytes)


@intrinsic  # type: ignore[untyped-decorator]
def to_nibbles_and_rest(
    typingctx: Any, a: Any, inverse: Any, scale: Any, factor: Any, out: Any, decoded: Any, rest: Any
) -> Any:
    """As `to_bytes_and_rest`, for `to_nibbles`."""
    return _with_rest(_packed)


@intrinsic  # type: ignore[untyped-decorator]
def from_nibbles(typingctx: Any, a: Any, scale: Any, out: Any) -> Any:
    """As `from_bytes`, from what `to_nibbles` wrote."""

    def code(build: Any, at: Sequence[Any]) -> None:
        both = build.sext(_load(build, at[0], _NIBBLES), _HALF_INTS)
        low = build.ashr(build.shl(both, _all(_HALF_INTS, 28)), _all(_HALF_INTS, 28))
        order = ir.Constant(_INTS, list(range(BLOCK)))
        _store_scaled(build, build.shuffle_vector(low, build.ashr(both, _all(_HALF_INTS, 4)), order), at[1], at[2])

    return _compiled(code, types.void, types.int64, types.float32, types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def to_bfloat16(typingctx: Any, a: Any, out: Any) -> Any:
    """out = a, rounded to nearest even, as bfloat16; NaN stays NaN"""

    def code(build: Any, at: Sequence[Any]) -> None:
        bits = build.bitcast(_load(build, at[0], _FLOATS), _INTS)
        upper = build.lshr(bits, _all(_INTS, 16))
        odd = build.add(build.and_(upper, _all(_INTS, 1)), _all(_INTS, 0x7FFF))
        rounded = build.lshr(build.add(bits, odd), _all(_INTS, 16))
        is_nan = build.icmp_signed(">", build.and_(bits, _all(_INTS, MAGNITUDE)), _all(_INTS, INFINITY))
        chosen = build.select(is_nan, build.or_(upper, _all(_INTS, 0x40)), rounded)
        _store(build, build.trunc(chosen, _HALVES), at[1])

    return _compiled(code, types.void, types.int64, types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def from_bfloat16(typingctx: Any, a: Any, out: Any) -> Any:
    """out = the bfloat16 of a"""

    def code(build: Any, at: Sequence[Any]) -> None:
        bits = build.shl(build.zext(_load(build, at[0], _HALVES), _INTS), _all(_INTS, 16))
        _store(build, build.bitcast(bits, _FLOATS), at[1])

    return _compiled(code, types.void, types.int64, types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def bits_of(typingctx: Any, value: Any) -> Any:
    """The bits of a float32 as an int32."""
    return _compiled(lambda build, at: build.bitcast(at[0], _INT32), types.int32, types.float32)


@intrinsic  # type: ignore[untyped-decorator]
def float_of(typingctx: Any, bits: Any) -> Any:
    """The float32 that has these bits, the low 32 of an int64."""
    return _compiled(lambda build, at: build.bitcast(build.trunc(at[0], _INT32), _FLOAT), types.float32, types.int64)


def _with_rest(narrowed: Callable[[Any, Any], Any]) -> Any:
    def code(build: Any, at: Sequence[Any]) -> None:
        values = _load(build, at[0], _FLOATS)
        rounded = _rounded(build, values, at[1])
        _store(build, narrowed(build, rounded), at[4])
        # Exact: whole numbers far below 2**22.
        decoded = build.fmul(build.fsub(rounded, _all(_FLOATS, ROUNDING)), _spread(build, at[2]))
        rest = build.fmul(build.fsub(values, decoded), _spread(build, at[3]))
        _store(build, decoded, at[5])
        _store(build, rest, at[6])

    scalars, addresses = (types.float32,) * 3, (types.int64,) * 3
    return _compiled(code, types.void, types.int64, *scalars, *addresses)


def _compiled(code: Callable[[Any, Sequence[Any]], Any], result: Any, *arguments: Any) -> Any:
    """What an intrinsic returns: its types, and what writes its code."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        value = code(builder, values)
        return context.get_dummy_value() if result == types.void else value

    return result(*arguments), codegen


def _load(build: Any, address: Any, kind: Any) -> Any:
    return build.load(build.inttoptr(address, kind.as_pointer()), align=1)


def _store(build: Any, value: Any, address: Any) -> None:
    build.store(value, build.inttoptr(address, value.type.as_pointer()), align=1)


def _store_scaled(build: Any, whole: Any, scale: Any, out: Any) -> None:
    _store(build, build.fmul(build.sitofp(whole, _FLOATS), _spread(build, scale)), out)


def _rounded(build: Any, values: Any, inverse: Any) -> Any:
    """ROUNDING + values * inverse as floats, with the nearest whole numbers in the low bits."""
    return build.fadd(build.fmul(values, _spread(build, inverse)), _all(_FLOATS, ROUNDING))


def _low_bytes(build: Any, rounded: Any) -> Any:
    return build.trunc(build.bitcast(rounded, _INTS), _BYTES)


def _packed(build: Any, rounded: Any) -> Any:
    """The low nibbles, two in a byte."""
    whole = _low_bytes(build, rounded)
    low = build.and_(_part(build, whole, 0), _all(_NIBBLES, 15))
    return build.or_(low, build.shl(_part(build, whole, BLOCK // 2), _all(_NIBBLES, 4)))


def _largest(build: Any, values: Any) -> Any:
    kind = ir.FunctionType(_INT32, [_INTS])
    reduce = cgutils.get_or_insert_function(build.module, kind, f"llvm.vector.reduce.smax.v{BLOCK}i32")
    return build.call(reduce, [_magnitudes(build, values)])


def _magnitudes(build: Any, values: Any) -> Any:
    return build.and_(build.bitcast(values, _INTS), _all(_INTS, MAGNITUDE))


def _all(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _spread(build: Any, value: Any) -> Any:
    """A vector with the same scalar everywhere."""
    one = build.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(_INT32, 0))
    return build.shuffle_vector(one, one, _all(_INTS, 0))


def _part(build: Any, vector: Any, first: int) -> Any:
    """Half of a vector of bytes."""
    places = ir.Constant(_HALF_INTS, list(range(first, first + BLOCK // 2)))
    return build.shuffle_vector(vector, vector, places)
