"""What a table means: all ranks' tables run by plain Python and numpy, slowly and on sight.

The compiled loop must agree with this bit for bit (a NaN's payload excepted).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from collectives.engine.compiled.kernels import (  # fmt: skip
    BAND,
    BFLOAT16,
    BOR,
    BXOR,
    DST,
    DTYPE_CODE,
    FLOAT16,
    MAX,
    MIN,
    OWN,
    PRODUCT,
    SUM,
)
from collectives.engine.compiled.table import DOWN, NO_PEER, UP, Table
from collectives.schedule.codec import BF16, BLOCK, CODECS, MAX_SCALE, MIN_SCALE

Bytes = npt.NDArray[np.uint8]
Values = npt.NDArray[Any]
Message = tuple[int, int, int, int, int, bytes]  # to, from, direction, tree id, slice, payload

NUMPY_DTYPE = {code: name for name, code in DTYPE_CODE.items() if name != "bfloat16"}


def run(
    tables: Sequence[Table], sources: Sequence[Bytes], targets: Sequence[Bytes], order: random.Random | None = None,
    residuals: Sequence[Values] | None = None,
) -> None:  # fmt: skip
    """Run one op of all ranks; index = rank. Fills `targets`.

    Args:
        residuals: of an op with a codec, float32 of the message's length for each rank; read and written.
        order: delivers messages in random order; None delivers first in, first out. The result must not differ.
    """
    ranks = [_Rank(rank, *parts) for rank, parts in enumerate(zip(tables, sources, targets, strict=True))]
    for rank, residual in zip(ranks, residuals or [], strict=False):
        rank.residual = residual
    for rank in ranks:
        for copy in rank.table.copies:
            at, to, n = int(copy["source_offset"]), int(copy["target_offset"]), int(copy["num_bytes"])
            rank.target[to : to + n] = rank.source[at : at + n]
    mail = [message for rank in ranks for message in rank.first_messages()]
    while mail:
        message = mail.pop(order.randrange(len(mail)) if order else 0)
        mail += ranks[message[0]].receive(*message[1:])


class _Rank:
    def __init__(self, rank: int, table: Table, source: Bytes, target: Bytes) -> None:
        self.rank, self.table, self.source, self.target = rank, table, source, target
        self.op = table.run[0]
        self.residual: Values | None = None
        self.waiting: dict[tuple[int, int], dict[int, bytes]] = {}  # (tree, slice) -> child -> its contribution

    def first_messages(self) -> list[Message]:
        """What can leave before anything has arrived: leaves' slices up, or the root's slices down."""
        messages: list[Message] = []
        for tree in self.table.trees:
            for s in range(tree["num_slices"]):
                if tree["up"] and not tree["num_edges"]:
                    messages.append(self._up(tree, s, self._own(tree, s).tobytes()))
                elif not tree["up"] and tree["parent"] == NO_PEER:
                    messages += self._down(tree, s, self._own(tree, s).tobytes())
        return messages

    def receive(self, sender: int, direction: int, tree_id: int, s: int, payload: bytes) -> list[Message]:
        tree = self.table.trees[self.table.local_tree[tree_id]]
        if direction == DOWN:
            self._store(tree, s, payload)
            return self._down(tree, s, payload)
        arrived = self.waiting.setdefault((tree_id, s), {})
        arrived[sender] = payload
        if len(arrived) < tree["num_edges"]:
            return []
        result = self._fold(tree, s, arrived)
        if tree["parent"] != NO_PEER:
            return [self._up(tree, s, result)]
        if tree["coded"]:
            result = self._as_decoded(tree, s, result, int(self.op["divisor"]))
        self._store(tree, s, result)
        return self._down(tree, s, result) if tree["down"] else []

    def _up(self, tree: np.void, s: int, payload: bytes) -> Message:
        if tree["coded_parent"]:
            payload = self._as_decoded(tree, s, payload, 1)
        return int(tree["parent"]), self.rank, UP, int(tree["id"]), s, payload

    def _down(self, tree: np.void, s: int, payload: bytes) -> list[Message]:
        children = self.table.edges[tree["first_edge"] :][: tree["num_edges"]]["peer"]
        return [(int(child), self.rank, DOWN, int(tree["id"]), s, payload) for child in children]

    def _as_decoded(self, tree: np.void, s: int, payload: bytes, divisor: int) -> bytes:
        """What others make of a slice that this rank encodes. What is lost goes to the residual."""
        values = np.frombuffer(payload, np.float32)
        at = (int(tree["source_offset"]) + self._range(tree, s)[0]) // 4
        own = None if self.residual is None else self.residual[at : at + len(values)]
        if own is not None:
            values = values + own
        values = _divide(values, divisor)
        decoded = coded(int(self.op["codec"]), values)
        if own is not None:
            with np.errstate(invalid="ignore"):
                own[:] = np.where(np.isfinite(decoded), (values - decoded) * np.float32(divisor), np.float32(0))
        return decoded.tobytes()

    def _range(self, tree: np.void, s: int) -> tuple[int, int]:
        """A slice's first byte and number of bytes, from where its tree begins."""
        first = s * int(tree["slice_elems"])
        n = min(int(tree["slice_elems"]), int(tree["count"]) - first)
        return first * int(self.op["item_size"]), n * int(self.op["item_size"])

    def _own(self, tree: np.void, s: int) -> Bytes:
        first, n = self._range(tree, s)
        return self.source[int(tree["source_offset"]) + first :][:n]

    def _store(self, tree: np.void, s: int, payload: bytes) -> None:
        first, n = self._range(tree, s)
        self.target[int(tree["target_offset"]) + first :][:n] = np.frombuffer(payload, np.uint8)

    def _fold(self, tree: np.void, s: int, arrived: dict[int, bytes]) -> bytes:
        """The tree's steps, on whole slices. At the root: divided (average) and rounded."""
        code, reduction = int(self.op["dtype"]), int(self.op["reduction"])
        edges = self.table.edges[tree["first_edge"] :][: tree["num_edges"]]
        values = {OWN: _read(code, self._own(tree, s).tobytes(), int(self.op["item_size"]))}
        for index, edge in enumerate(edges):
            values[index] = _read(code, arrived[int(edge["peer"])], int(edge["wire_size"]))
        for step in self.table.steps[tree["first_step"] :][: tree["num_steps"]]:
            values[int(step["dst"])] = _combine(reduction, values[int(step["a"])], values[int(step["b"])])
        result = values[DST]
        if tree["parent"] != NO_PEER:
            return result.tobytes()
        return _round(code, _divide(result, 1 if tree["coded"] else int(self.op["divisor"])))


def coded(codec: int, values: Values) -> Values:
    """Float32 as they are after encoding and decoding; `collectives/schedule/codec.py` says how."""
    if codec == BF16:
        return _read(BFLOAT16, _round(BFLOAT16, values), 2)
    levels = {each.code: each.levels for each in CODECS.values()}[codec]
    padded = np.zeros(-(-len(values) // BLOCK) * BLOCK, np.float32)
    padded[: len(values)] = values
    decoded = np.empty_like(padded).reshape(-1, BLOCK)
    for block, out in zip(padded.reshape(-1, BLOCK), decoded, strict=True):
        largest = np.abs(block).max()
        scale = _read(BFLOAT16, _round(BFLOAT16, np.array([largest / np.float32(levels)], np.float32)), 2)[0]
        if not np.isfinite(largest) or scale >= MAX_SCALE:
            out[:] = np.nan
        elif scale < MIN_SCALE:
            out[:] = 0
        else:
            out[:] = np.rint(block * (np.float32(1) / scale)).astype(np.int8).astype(np.float32) * scale
    return decoded.reshape(-1)[: len(values)]


def _read(code: int, payload: bytes, item_size: int) -> Values:
    """Values of one contribution; 16-bit floats as float32, in which partial sums (item size 4) travel already."""
    if code in (BFLOAT16, FLOAT16) and item_size == 4:
        return np.frombuffer(payload, np.float32)
    if code == BFLOAT16:
        return (np.frombuffer(payload, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    values = np.frombuffer(payload, NUMPY_DTYPE[code])
    return values.astype(np.float32) if code == FLOAT16 else values


def _combine(reduction: int, a: Values, b: Values) -> Values:
    operation = {
        SUM: np.add, PRODUCT: np.multiply, MIN: np.minimum, MAX: np.maximum,
        BAND: np.bitwise_and, BOR: np.bitwise_or, BXOR: np.bitwise_xor,
    }[reduction]  # fmt: skip
    with np.errstate(all="ignore"):
        return operation(a, b)


def _divide(values: Values, divisor: int) -> Values:
    if divisor == 1:
        return values
    if np.issubdtype(values.dtype, np.floating):
        return values / values.dtype.type(divisor)  # type: ignore[no-any-return]
    wide = values.astype(np.int64)
    quotient: Values = (np.sign(wide) * (np.abs(wide) // divisor)).astype(values.dtype)
    return quotient


def _round(code: int, values: Values) -> bytes:
    if code == FLOAT16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).tobytes()
    if code != BFLOAT16:
        return values.tobytes()
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16).tobytes()
