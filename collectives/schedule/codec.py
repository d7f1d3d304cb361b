"""How float32 numbers look on a network link. Plain values, no I/O; `engine/codecs.py` computes them.

    none   as they are
    bf16   the upper half of a float32, rounded to nearest even
    int8   blocks of BLOCK elements, a scale for each: 2 bytes (a bfloat16), then a byte an element
    int4   the same with half a byte an element

The names with "narrow-" before them do the same on narrow links only (`Topology.is_narrow`); elsewhere numbers go as
they are. All ranks still get the same bits, those of a result that has been encoded.

An element x of a block becomes q = x / scale, rounded to nearest even; scale is the block's largest magnitude over
`levels`, rounded to the nearest bfloat16. Its relative error is so small that the largest magnitude becomes exactly
`levels`, so what was decoded gives the same code again, and any rank may encode a result anew. What is in the last
block beyond the message counts as zero and travels with it.

Zero stays zero. A block with a number that is not finite (or whose scale would be MAX_SCALE or more) has a scale that
is NaN and comes out as NaN, all of it; of bf16 only that element does, or is infinite. A block whose scale would be
below MIN_SCALE comes out as zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from collectives.errors import UsageError

BLOCK = 64
RAW, BF16, INT8, INT4 = range(4)  # as they stand in tables
MIN_SCALE, MAX_SCALE = 2.0**-120, 2.0**120  # the latter excluded


@dataclass(frozen=True)
class Codec:
    """One of the above.

    Attributes:
        code: its number in tables.
        block_elems, block_bytes: elements and bytes of what is encoded together.
        levels: see above; 0 where there are no scales.
        largest_error: of one encoding, as a part of the largest magnitude in the block.
        narrow_only: see above.
    """

    name: str
    code: int
    block_elems: int
    block_bytes: int
    levels: int
    largest_error: float
    narrow_only: bool = False

    @property
    def ratio(self) -> float:
        """Bytes of float32 for each byte on the link, in long messages."""
        return 4 * self.block_elems / self.block_bytes

    def num_bytes(self, count: int) -> int:
        """Bytes of `count` elements that are encoded together."""
        return -(-count // self.block_elems) * self.block_bytes


PLAIN = Codec("none", RAW, 1, 4, 0, 0.0)
_LOSSY = (
    Codec("bf16", BF16, 1, 2, 0, 2.0**-8),
    Codec("int8", INT8, BLOCK, 2 + BLOCK, 127, 1.01 / 254),
    Codec("int4", INT4, BLOCK, 2 + BLOCK // 2, 7, 1.01 / 14),
)
CODECS = {"none": PLAIN}  # the mildest first
for _codec in _LOSSY:
    CODECS[f"narrow-{_codec.name}"] = replace(_codec, name=f"narrow-{_codec.name}", narrow_only=True)
    CODECS[_codec.name] = _codec


def codec_of(name: str) -> Codec:
    """The codec of a name. Names come from options, ops and plans; what computes with a codec takes the `Codec`.

    Raises:
        UsageError: no codec has this name.
    """
    if name not in CODECS:
        raise UsageError(f"codec is {name!r}; wanted one of {', '.join(CODECS)}")
    return CODECS[name]
