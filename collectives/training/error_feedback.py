"""A bucket of gradients as the attached hook sees it, and the residual of a lossy codec for each parameter.

A lossy codec sends an approximation of a gradient. What it cut off, the residual, is added to the next step's gradient
before that is encoded (error feedback, Karimireddy et al. 2019), so the sum of what was sent follows the sum of the
gradients.

The engine reads and updates residuals as one flat vector for each bucket. But DDP may pack the same parameters into
other buckets after the first step, so nothing is keyed by bucket number: a vector is keyed by its parameters, and each
parameter has a view into it, through which its residual is copied when the bucket layout changes.
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
        flat: vector of all the gradients, one after the other; it is reduced in place.
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
    """The residual of each parameter.

    Args:
        names: of the model's parameters.
    """

    def __init__(self, names: Mapping[Tensor, str]) -> None:
        self._names = names
        self._vectors: dict[tuple[Tensor, ...], Tensor] = {}
        self._views: dict[str, Tensor] = {}  # by parameter name, into the vectors
        self._encoded_under: dict[tuple[Tensor, ...], object] = {}
        self._is_restored = False  # until the end of the first step after `load_state_dict`

    def vector(self, bucket: Bucket, device: torch.device) -> Tensor:
        """The bucket's residual, a float32 for each element. Whoever reduces the bucket updates it in place."""
        key = tuple(bucket.parameters)
        if key not in self._vectors:
            self._move_to(key, bucket, device)
        return self._vectors[key]

    def settle(self, bucket: Bucket, under: object) -> None:
        """Add the residual to the gradients and zero it, if it was left by another codec, topology or bucket layout.

        The engine adds a residual only to elements that this rank encodes. Under another codec or plan, or in a bucket
        of other parameters, this rank may encode other elements, and the residual of the former ones would never be
        sent. A residual from a checkpoint stays: the first step after a restart runs under what the state was saved
        under, and must compute the same bits.

        Args:
            under: whatever decides which rank encodes which elements, such as codec and topology; compared by ==.
        """
        key = tuple(bucket.parameters)
        if self._encoded_under.get(key) == under:
            return
        has_residual = any(self._names[parameter] in self._views for parameter in bucket.parameters)
        if has_residual and not self._is_restored:
            vector = self.vector(bucket, torch.device("cpu"))
            bucket.flat.add_(vector.to(bucket.flat.device))
            vector.zero_()
        self._encoded_under[key] = under

    def end_step(self) -> None:
        """Call after the step's last bucket was settled."""
        self._is_restored = False

    def _move_to(self, key: tuple[Tensor, ...], bucket: Bucket, device: torch.device) -> None:
        """Make the vector of a new bucket; residuals that its parameters have in other vectors are copied."""
        vector = torch.zeros(bucket.flat.numel(), dtype=torch.float32, device=device)
        for parameter, part in zip(bucket.parameters, bucket.split(vector), strict=True):
            name = self._names[parameter]
            if name in self._views:  # of a former bucket, or of a loaded state
                part.copy_(self._views[name].view(parameter.shape))
            self._views[name] = part
        # Vectors that have lost a parameter belong to buckets of the former layout, which will not come again. Their
        # other parameters keep their residuals: their views hold the memory until they move, too.
        moved = set(key)
        self._vectors = {old: kept for old, kept in self._vectors.items() if not moved & set(old)}
        under = self._encoded_under.get(key)
        self._encoded_under = {old: kept for old, kept in self._encoded_under.items() if not moved & set(old)}
        if under is not None:
            self._encoded_under[key] = under
        self._vectors[key] = vector

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the residuals by parameter name, in the parameters' shapes."""
        return {name: part.detach().clone() for name, part in self._views.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace all residuals by those that `state_dict` returned.

        Raises:
            UsageError: names or shapes are not this model's.
        """
        check_names("residuals", state, self._names)
        self._vectors, self._encoded_under, self._is_restored = {}, {}, True
        self._views = {name: part.detach().float().clone() for name, part in state.items()}


def check_names(what: str, state: Mapping[str, Tensor], names: Mapping[Tensor, str], shapes: bool = True) -> None:
    """Check that a saved mapping by parameter name belongs to this model.

    Raises:
        UsageError: a name that the model does not have, or another shape.
    """
    known = {name: tuple(parameter.shape) for parameter, name in names.items()}
    unknown = sorted(set(state) - set(known))
    if unknown:
        raise UsageError(f"load_state_dict: {what} of {_some(unknown)}, which the model has no parameters for")
    unlike = [name for name, part in state.items() if shapes and tuple(part.shape) != known[name]]
    if unlike:
        first = unlike[0]
        got = tuple(state[first].shape)
        raise UsageError(f"load_state_dict: {what} of {first} have shape {got}; the parameter has {known[first]}")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
