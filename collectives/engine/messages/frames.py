"""What travels on a message connection: frames of a fixed header, some with a payload.

    EAGER      a whole message of at most EAGER_BYTES; the receiver keeps it until a receive asks for it
    ANNOUNCE   a longer one is ready to be sent, or a short one for which the receiver has no room promised
    READY      a receive has been matched with the announced message of this number
    DATA       the next bytes of an announced message
    CREDIT     nothing but the header's credit

Credit bounds what a receiver keeps. A sender starts with WINDOW_BYTES for each peer, pays `cost` for an eager message,
and announces when it cannot pay. A receiver gives the cost back when the message has reached its receive: in the header
of whatever it sends next, or in a frame of its own once half of the window is due.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

EAGER, ANNOUNCE, READY, DATA, CREDIT = 1, 2, 3, 4, 5
EAGER_BYTES = 1024 * 1024
WINDOW_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024  # of DATA: a short message waits for no more than this, and for messages before it
MAX_ANNOUNCED = 1_000_000  # messages of one peer that no receive has asked for
MAX_TAG = 2**62 - 1  # of a program's messages
BARRIER_TAG = MAX_TAG + 1  # from here on: of the group's own, which no message of a program's meets
_OVERHEAD_BYTES = 128  # what an empty message costs its receiver, roughly

_HEADER = struct.Struct("<BBHIqQQ")
HEADER_BYTES = _HEADER.size

DTYPES = (
    *("other", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "bool", "float16", "bfloat16"),
    *("float32", "float64", "complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"),
    *("float8_e5m2fnuz", "float8_e8m0fnu"),
)
"""Names by their number on the wire; new ones go to the end."""
CODE_OF = {name: code for code, name in enumerate(DTYPES)}
_ANY = (CODE_OF["other"], CODE_OF["uint8"])


class Header(NamedTuple):
    """The fields of a header.

    Attributes:
        dtype: number of the message's dtype.
        credit: bytes that the sender of this frame gives back.
        length: bytes of the message; of a DATA frame, those that follow.
        message: number of the announced message, counted by its sender.
    """

    kind: int
    dtype: int
    generation: int
    credit: int
    tag: int
    length: int
    message: int


def pack(header: Header) -> bytes:
    return _HEADER.pack(*header)


def unpack(buffer: bytearray, offset: int) -> Header:
    return Header._make(_HEADER.unpack_from(buffer, offset))


def cost(length: int) -> int:
    """What an eager message of `length` bytes takes of the window."""
    return length + _OVERHEAD_BYTES


def agree(sent: int, wanted: int) -> bool:
    """Whether a message of one dtype may fill a buffer of another: plain bytes fit everything."""
    return sent == wanted or sent in _ANY or wanted in _ANY


def describe(num_bytes: int, dtype: int) -> str:
    name = DTYPES[dtype] if dtype < len(DTYPES) else f"dtype {dtype}"
    return f"{num_bytes} bytes of {name}"
