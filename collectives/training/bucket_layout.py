"""How gradients were packed into buckets, and the first step after a restart packed the same way.

DDP packs its buckets by the order of the parameters in the first step of a process, and by the order in which gradients
became ready from the second step on. A block codec rounds an element by the largest of its neighbours, and trees cut a
message by position, so another packing gives other bits: a restarted process would differ from one that ran through, in
its first step only. So this step's buckets are held back until all gradients are there, repacked as they were when the
state was saved, reduced, and copied back. It does not overlap with backward; every later step does.

Buckets that DDP happens to pack as before are reduced at once. Ranks agree on which those are, because DDP packs alike
on all ranks and all load states of one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from collectives.backend.work import Promise
from collectives.errors import UsageError
from collectives.training.error_feedback import Bucket

Reduce = Callable[[Bucket], Promise]


class BucketLayout:
    """The buckets of the last step, by parameter names.

    Args:
        names: of the model's parameters.
    """

    def __init__(self, names: Mapping[Tensor, str]) -> None:
        self._names = names
        self._parameters = {name: parameter for parameter, name in names.items()}
        self._buckets: list[list[str]] = []
        self._num_bytes: list[int] = []
        self._saved: list[list[str]] | None = None
        self._held: list[tuple[Bucket, Promise]] = []

    def reduce(self, bucket: Bucket, reduce: Reduce) -> Promise:
        """Reduce one of DDP's buckets; in the first step after a restart by the saved packing, see above.

        Args:
            reduce: begins to average a bucket in place.
        """
        if bucket.index == 0:
            self._buckets, self._num_bytes, self._held = [], [], []
        names = [self._names[parameter] for parameter in bucket.parameters]
        # Only a common beginning may go ahead: after a bucket is held, the saved order of the ops would be broken.
        if self._saved is None or (not self._held and self._saved[bucket.index : bucket.index + 1] == [names]):
            self._buckets.append(names)
            self._num_bytes.append(bucket.flat.nbytes)
            if bucket.is_last:
                self._saved = None
            return reduce(bucket)
        promise = Promise(bucket.flat)
        self._held.append((bucket, promise))
        if bucket.is_last:
            self._reduce_held(self._saved[len(self._buckets) :], reduce)
            self._saved = None
        return promise  # DDP takes its future now and waits for it after backward, when `_reduce_held` has settled it

    def _reduce_held(self, saved: Sequence[list[str]], reduce: Reduce) -> None:
        """Repack the held buckets, reduce them, and copy the results back.

        It waits, since DDP's own buckets are complete only when all repacked ones are. Errors are raised here, in the
        backward pass.
        """
        # Views into DDP's buckets, so that copying a result to them puts it where DDP reads it.
        gradients = {
            self._names[parameter]: gradient
            for bucket, _ in self._held
            for parameter, gradient in zip(bucket.parameters, bucket.split(bucket.flat), strict=True)
        }
        first = len(self._buckets)
        repacked = []
        for index, names in enumerate(saved, start=first):
            flat = torch.cat([gradients[name].reshape(-1) for name in names])
            parameters = [self._parameters[name] for name in names]
            repacked.append(Bucket(index, index + 1 == first + len(saved), parameters, flat))
        # All are started before the first is awaited, so that they overlap.
        for bucket, pending in [(bucket, reduce(bucket)) for bucket in repacked]:
            pending.wait()
            for parameter, gradient in zip(bucket.parameters, bucket.split(bucket.flat), strict=True):
                gradients[self._names[parameter]].copy_(gradient)
            self._buckets.append([self._names[parameter] for parameter in bucket.parameters])
            self._num_bytes.append(bucket.flat.nbytes)
        for _, promise in self._held:
            promise.settle()

    def bucket_bytes(self) -> list[int]:
        """Sizes of the last step's buckets in bytes."""
        return list(self._num_bytes)

    def state_dict(self) -> list[list[str]]:
        """The parameters' names in each bucket of the last step."""
        return [list(names) for names in self._buckets]

    def load_state_dict(self, state: Any) -> None:
        """Pack the next step's gradients into these buckets.

        Raises:
            UsageError: the names are not those of this model's parameters.
        """
        saved = sorted(name for names in state for name in names)
        known = sorted(name for name, parameter in self._parameters.items() if parameter.requires_grad)
        if state and saved != known:
            raise UsageError(
                f"load_state_dict: the state's buckets hold {len(saved)} parameters, which are not the {len(known)} "
                "that this model trains"
            )
        self._saved = [list(names) for names in state] or None
