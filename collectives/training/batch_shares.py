"""`collectives.Shares`: which part of each global batch a rank takes, by speeds measured while it trains."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch

from collectives.backend.c10d import dist
from collectives.errors import UsageError
from collectives.training.apportion import apportion
from collectives.training.ddp import measured_samples_per_s
from collectives.training.rebalance import announce, read_shares, rebalanced
from collectives.training.step_timer import KEPT_STEPS

logger = logging.getLogger(__name__)

FIRST_CHECK_STEP = 3
"""Steps before the first comparison of speeds: a cold one and two that count."""
CHECK_INTERVAL = KEPT_STEPS
"""Steps between later comparisons: as many as a speed is the median of, so each sees new measurements."""


class Shares:
    """This rank's part of every global batch. The size of the global batch does not depend on the shares.

        shares = collectives.Shares(global_batch=256)
        for step in range(steps):
            mine = shares.next()                      # a slice of range(256), different on each rank
            inputs, targets = samples_of(step)[mine]
            collectives.set_weight(len(inputs))       # so the gradient is the mean over all 256
            ...

    At first shares are equal, or in proportion to the numbers in NARROWGAUGE_SHARES, which the launcher sets from its
    plan. After two measured steps they follow the speeds of attached models (`collectives.attach`): samples per second
    of forward and backward, without waiting. From then on speeds are compared every 20 steps; shares change by at most
    a fifth, and only if the slowest rank would compute more than 5 % shorter with shares in proportion to the speeds
    (`rebalance.py`). All ranks change at the same step; rank 0 logs it (INFO). Each rank keeps at least one sample.

    Shares decide which samples a rank adds up, so the last digits of a loss depend on them. `rebalance=False` keeps the
    first shares, for runs that should be the same bit for bit.

    Args:
        global_batch: samples of all ranks together, at least one for each.
        rebalance: whether shares follow the speeds; None takes NARROWGAUGE_REBALANCE ("0" or "1"), else True.
        group: a process group; None takes the default one.

    Attributes:
        each: samples of each rank now.

    Raises:
        UsageError: fewer samples than ranks; an environment variable has a wrong value.
    """

    def __init__(self, global_batch: int, rebalance: bool | None = None, group: Any = None) -> None:
        self._group = dist.group.WORLD if group is None else group
        self._rank: int = dist.get_rank(self._group)
        self._rebalance = _wanted() if rebalance is None else rebalance
        size: int = dist.get_world_size(self._group)
        given = os.environ.get("NARROWGAUGE_SHARES")
        whole_world = size == dist.get_world_size()
        speeds = read_shares(given, size) if given and whole_world else [1.0] * size
        self.each: list[int] = apportion(global_batch, speeds)
        self._steps = 0
        self._next_check = FIRST_CHECK_STEP
        self._measured = False

    @property
    def mine(self) -> slice:
        """This rank's part of range(global_batch)."""
        return self.part_of(sum(self.each))

    def part_of(self, samples: int) -> slice:
        """This rank's part of a batch of another size, such as the last one of an epoch.

        Raises:
            UsageError: fewer samples than ranks.
        """
        shares = apportion(samples, self.each)
        first = sum(shares[: self._rank])
        return slice(first, first + shares[self._rank])

    def next(self) -> slice:
        """This rank's part of the next global batch. All ranks call it, once before each step.

        Raises:
            CollectiveError: the exchange of speeds failed.
        """
        if self._rebalance and self._steps == self._next_check:
            self._check_speeds()
        self._steps += 1
        return self.mine

    def take(self, speeds: list[float]) -> None:
        """Share in proportion to these speeds, from the next batch on; the same on all ranks."""
        self.each = apportion(sum(self.each), speeds)

    def state_dict(self) -> dict[str, Any]:
        """The shares, and whether they were measured; the same on all ranks."""
        return {"each": list(self.each), "measured": self._measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with saved shares, scaled if the global batch has changed. If the number of ranks has changed, the
        state is ignored and speeds are measured again."""
        if len(state["each"]) == len(self.each):
            self.take([float(share) for share in state["each"]])
            self._measured = bool(state["measured"])

    def _check_speeds(self) -> None:
        speeds = exchange_speeds(self._group)
        if speeds is None:
            self._next_check += 1
            return
        self._next_check += CHECK_INTERVAL
        change = rebalanced(self.each, speeds, bounded=self._measured)
        self._measured = True
        if change is None:
            return
        self.each = list(change.new)
        logger.log(logging.INFO if self._rank == 0 else logging.DEBUG, "%s", change)
        if self._rank == 0:
            announce(change)


def exchange_speeds(group: Any) -> list[float] | None:
    """Each rank's samples per second; None if any has not measured its own. All ranks call it."""
    own = torch.tensor([measured_samples_per_s() or 0.0], dtype=torch.float64)
    speeds = [torch.zeros_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(speeds, own, group=group)
    found = [float(speed) for speed in speeds]
    return found if min(found) > 0 else None


def _wanted() -> bool:
    text = os.environ.get("NARROWGAUGE_REBALANCE", "1")
    if text not in ("0", "1"):
        raise UsageError(f"NARROWGAUGE_REBALANCE is {text!r}; wanted 0 or 1")
    return text == "1"
