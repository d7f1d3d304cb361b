"""How float32 numbers are encoded on network links: plain values; `engine/compiled/codecs.py` does the encoding.

    none   as they are
    bf16   the upper half of a float32, rounded to nearest even
    int8   blocks of BLOCK elements, each with a scale: 2 bytes (a bfloat16), then one byte for each element
    int4   the same with half a byte for each element

The same names with the prefix "narrow-" encode on narrow links only (`Topology.is_narrow`); on other links numbers are
sent as they are. All ranks still get the same bits, those of an encoded result.

An element x of a block becomes q = x / scale, rounded to nearest even; scale is the block's largest magnitude over
`levels`, rounded to the nearest bfloat16. That rounding is so small that the largest magnitude becomes exactly
`levels`. So encoding a decoded block gives the same code again, and any rank may encode a result that it has received.
The last block is padded with zeros, which are sent with it.

Zero stays zero. A block with a number that is not finite, or whose scale would be MAX_SCALE or more, gets the scale NaN
and is decoded as NaN throughout; with bf16 only that element becomes NaN or infinite. A block whose scale would be
below MIN_SCALE is decoded as zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from collectives.errors import UsageError

BLOCK = 64
RAW, BF16, INT8, INT4 = range(4)  # codes in tables
MIN_SCALE, MAX_SCALE = 2.0**-120, 2.0**120  # the latter excluded


@dataclass(frozen=True)
class Codec:
    """A codec.

    Attributes:
        name: as above.
        code: its number in tables.
        block_elems, block_bytes: elements of a block, and bytes of an encoded one.
        levels: see above; 0 for codecs without scales.
        largest_error: of one encoding, relative to the largest magnitude in the block.
        narrow_only: whether it encodes on narrow links only.
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
        """Bytes of float32 for each encoded byte, in long messages."""
        return 4 * self.block_elems / self.block_bytes

    def num_bytes(self, count: int) -> int:
        """Bytes of `count` encoded elements; the last block counts in full."""
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
