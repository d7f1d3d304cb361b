"""The mean of gradients weighted by the samples that each rank had.

    mean = sum_i w_i g_i / W        W = sum_i w_i

W is an all-reduce of one number, started right before the first bucket. Waiting for it would put a round trip before
every step, so gradients are scaled by n w_i / W' first, with W' the total of the step before, then averaged over the n
ranks, and multiplied by W' / W when they arrive, if that is not 1. By then W has arrived, too: ops of a group end in
the order in which they start. Dividing by W' before sending keeps a codec's residual in the units of the gradient from
step to step. Equal weights give factors of exactly 1, and so the plain average bit for bit. Only the
first step, which has no step before, waits for its W.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from collectives.backend.c10d import all_reduce_options
from collectives.errors import UsageError


class Weights:
    """This rank's weight, step by step, and the total over all ranks.

    Args:
        group: the process group of the model.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self.weight: float | None = None
        self.last_total: float | None = None
        self._total: Tensor | None = None

    def set(self, samples: float) -> None:
        """The weight from the next backward pass on.

        Raises:
            UsageError: negative, or not finite.
        """
        if not (math.isfinite(samples) and samples >= 0):
            raise UsageError(f"set_weight got {samples!r}; wanted this rank's number of samples, 0 or more")
        self.weight = float(samples)

    def begin_step(self) -> None:
        """Begin to add up the weights, if there are any; called on all ranks before the first bucket."""
        if self.weight is None:
            return
        # The former total is complete: its op ended before that step's buckets. It is 0 after a step that `correct`
        # refused, and then the total before it stays.
        if self._total is not None and float(self._total) > 0:
            self.last_total = float(self._total)
        self._total = torch.tensor([self.weight], dtype=torch.float64)
        work = self._group.allreduce([self._total], all_reduce_options())
        if self.last_total is None:
            work.wait()
            self.last_total = _checked(self._total)

    def scale(self, flat: Tensor) -> None:
        """Multiply this rank's gradients by n w_i / W'. Those of a rank without samples, maybe NaN, become 0."""
        if self.weight is None or self.last_total is None:
            return
        if self.weight == 0:
            flat.zero_()  # not a product with 0, which keeps NaN
            return
        factor = self._group.size() * self.weight / self.last_total
        if factor != 1:  # saves a pass over the bucket in the usual case
            flat.mul_(factor)

    def correct(self, mean: Tensor) -> None:
        """Multiply an averaged bucket by W' / W; this step's W has arrived before the bucket.

        Raises:
            UsageError: no rank has samples.
        """
        if self._total is None or self.last_total is None:
            return
        factor = self.last_total / _checked(self._total)
        if factor != 1:
            mean.mul_(factor)

    def state_dict(self) -> dict[str, float | None]:
        """The weight, and the total that the next step scales by."""
        total = self.last_total if self._total is None or float(self._total) == 0 else float(self._total)
        return {"weight": self.weight, "total": total}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Continue from what `state_dict` returned."""
        self.weight, self.last_total, self._total = state["weight"], state["total"], None


def _checked(total: Tensor) -> float:
    if float(total) == 0:
        raise UsageError("no rank has samples in this step: all called set_weight(0), so there is no mean gradient")
    return float(total)
