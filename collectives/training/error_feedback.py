"""A bucket of gradients as the attached hook sees it, and what a lossy codec still owes to each parameter.

DDP may pack the same parameters into other buckets after the first step, so nothing here is kept by bucket number: what
is owed is kept as one flat vector for each bucket, because that is what the engine reads and updates, with a view of it
for each parameter, through which it moves to the next layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from collectives.errors import UsageError


@dataclass(frozen=True)
class Bucket:
    """Gradients that travel together.

    Attributes:
        index: position in the order of the backward pass.
        is_last: no other bucket follows in this backward pass.
        parameters: whose gradients these are, in the order of `flat`.
        flat: vector of all the gradients, end to end; the reduction happens in it.
    """

    index: int
    is_last: bool
    parameters: list[Tensor]
    flat: Tensor

    @classmethod
    def of(cls, given: Any) -> Bucket:
        """The bucket that torch hands to a hook (its GradBucket).

        Raises:
            UsageError: sparse gradients.
        """
        flat = given.buffer()
        if flat.is_sparse:
            raise UsageError(
                "an attached model has sparse gradients, which no codec and no weight applies to; build its embeddings "
                "with sparse=False, or train it without collectives.attach"
            )
        return cls(given.index(), given.is_last(), list(given.parameters()), flat)

    def split(self, vector: Tensor) -> list[Tensor]:
        """For each parameter its part, in its shape, of a vector that is laid out as `flat`."""
        parts = torch.split(vector, [parameter.numel() for parameter in self.parameters])
        return [part.view(parameter.shape) for part, parameter in zip(parts, self.parameters, strict=True)]


class Residuals:
    """What codecs have left out so far, for each parameter, to be added next time (error feedback).

    Args:
        names: of the model's parameters.
    """

    def __init__(self, names: Mapping[Tensor, str]) -> None:
        self._names = names
        self._vectors: dict[tuple[Tensor, ...], Tensor] = {}
        self._parts: dict[str, Tensor] = {}
        self._settled: dict[tuple[Tensor, ...], object] = {}
        self._is_restored = False  # what is owed was so under the circumstances of the first step that comes

    def vector(self, bucket: Bucket, device: torch.device) -> Tensor:
        """One float32 for each element of the bucket; whoever reduces the bucket reads and updates it."""
        key = tuple(bucket.parameters)
        if key not in self._vectors:
            self._move_to(key, bucket, device)
        return self._vectors[key]

    def settle(self, bucket: Bucket, under: object) -> None:
        """Add what is owed to the bucket itself where it was left out under other circumstances; nothing is owed then.

        A codec adds what a rank owes where that rank encodes, and under another codec or plan, or in a bucket of other
        parameters, it may encode elsewhere: what it owes would stay for good.

        Args:
            under: the circumstances, such as codec and topology: whatever decides which rank encodes what.
        """
        key = tuple(bucket.parameters)
        if self._settled.get(key) == under:
            return
        owes = any(self._names[parameter] in self._parts for parameter in bucket.parameters)
        if owes and not self._is_restored:
            vector = self.vector(bucket, torch.device("cpu"))
            bucket.flat.add_(vector.to(bucket.flat.device))
            vector.zero_()
        self._settled[key] = under

    def end_step(self) -> None:
        """The step's last bucket has been settled."""
        self._is_restored = False

    def _move_to(self, key: tuple[Tensor, ...], bucket: Bucket, device: torch.device) -> None:
        """A vector for parameters that were in other buckets so far, if anywhere."""
        vector = torch.zeros(bucket.flat.numel(), dtype=torch.float32, device=device)
        for parameter, part in zip(bucket.parameters, bucket.split(vector), strict=True):
            name = self._names[parameter]
            if name in self._parts:
                part.copy_(self._parts[name].view(parameter.shape))
            self._parts[name] = part
        moved = set(key)
        self._vectors = {old: kept for old, kept in self._vectors.items() if not moved & set(old)}
        settled = self._settled.get(key)
        self._settled = {old: kept for old, kept in self._settled.items() if not moved & set(old)}
        if settled is not None:
            self._settled[key] = settled
        self._vectors[key] = vector

    def state_dict(self) -> dict[str, Tensor]:
        """By the parameter's name, in its shape. Copies."""
        return {name: part.detach().clone() for name, part in self._parts.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; what is owed now is forgotten.

        Raises:
            UsageError: names or shapes of another model.
        """
        check_names("residuals", state, self._names)
        self._vectors, self._settled, self._is_restored = {}, {}, True
        self._parts = {name: part.detach().float().clone() for name, part in state.items()}


def check_names(what: str, state: Mapping[str, Tensor], names: Mapping[Tensor, str], shapes: bool = True) -> None:
    """See that a saved mapping by parameter name belongs to this model.

    Raises:
        UsageError: it names parameters that the model lacks, or of other shapes.
    """
    known = {name: tuple(parameter.shape) for parameter, name in names.items()}
    strange = sorted(set(state) - set(known))
    if strange:
        raise UsageError(f"load_state_dict: {what} of {_some(strange)}, which the model has no parameters for")
    unlike = [name for name, part in state.items() if shapes and tuple(part.shape) != known[name]]
    if unlike:
        first = unlike[0]
        got = tuple(state[first].shape)
        raise UsageError(f"load_state_dict: {what} of {first} have shape {got}; the parameter has {known[first]}")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
