"""Which samples of each global batch a rank gets, by the speeds that were measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.utils.data

from collectives.batch_shares import share_out
from collectives.c10d import dist
from collectives.ddp import measured_samples_per_s
from collectives.errors import UsageError

SEEDS_APART = 1_000_003  # of two epochs, so that neighbouring seeds share no order


def local_batch(global_batch: int, group: Any = None) -> int:
    """How many of a global batch's samples this rank should take, by the speeds measured so far. All ranks call it.

    Speeds are samples per second of forward and backward without waiting, as attached models (`collectives.attach`)
    have measured them by the weights that were set; until all ranks have measured two steps, shares are equal. All
    ranks' shares add up to `global_batch` and each is at least 1.

    Args:
        global_batch: samples of all ranks together, at least one for each.
        group: a process group; None takes the default one.

    Raises:
        UsageError: fewer samples than ranks.
        CollectiveError: the exchange failed.
    """
    chosen = dist.group.WORLD if group is None else group
    rank: int = dist.get_rank(chosen)
    return share_out(global_batch, exchange_speeds(chosen))[rank]


def exchange_speeds(group: Any) -> list[float]:
    """Each rank's samples per second, or 1.0 for all if any has not measured its own."""
    own = torch.tensor([measured_samples_per_s() or 0.0], dtype=torch.float64)
    speeds = [torch.zeros_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(speeds, own, group=group)
    found = [float(speed) for speed in speeds]
    return found if min(found) > 0 else [1.0] * len(found)


class Sampler(torch.utils.data.Sampler[list[int]]):
    """A batch sampler: each rank's part of every global batch, so that all samples of an epoch are seen once.

        sampler = collectives.Sampler(len(dataset), global_batch=256)
        loader = DataLoader(dataset, batch_sampler=sampler)
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for inputs, targets in loader:
                collectives.set_weight(len(inputs))
                ...
            sampler.balance()

    Shares are equal until `balance` is called. The order of the samples depends on seed and epoch alone, so global
    batches hold the same samples whatever the number of ranks and their shares. The last global batch is as small as
    what is left; if that is less than one sample for each rank, it is left out.

    Args:
        num_samples: size of the data set.
        global_batch: samples of all ranks together in a step, at least one for each rank.
        shuffle: False keeps the order of the data set.
        seed: of the order; the same on all ranks.
        group: a process group; None takes the default one.

    Raises:
        UsageError: fewer samples in a batch than ranks.
    """

    def __init__(
        self, num_samples: int, global_batch: int, shuffle: bool = True, seed: int = 0, group: Any = None
    ) -> None:
        self._group = dist.group.WORLD if group is None else group
        self._rank: int = dist.get_rank(self._group)
        self._size: int = dist.get_world_size(self._group)
        self._num_samples, self._global_batch = num_samples, global_batch
        self._shuffle, self._seed, self._epoch = shuffle, seed, 0
        self._speeds: Sequence[float] = [1.0] * self._size
        if num_samples < 0:
            raise UsageError(f"Sampler got num_samples={num_samples}; wanted the size of the data set")
        share_out(global_batch, self._speeds)

    def balance(self) -> list[int]:
        """Take shares by the speeds measured so far, from the next pass over the data on. All ranks call it.

        Returns:
            The samples of each rank in a full batch.
        """
        self._speeds = exchange_speeds(self._group)
        return share_out(self._global_batch, self._speeds)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass over the data. The same on all ranks."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self._num_samples))
        if self._shuffle:
            generator = torch.Generator().manual_seed(self._seed + SEEDS_APART * self._epoch)
            order = torch.randperm(self._num_samples, generator=generator).tolist()
        speeds = self._speeds
        for batch in range(len(self)):
            whole = order[batch * self._global_batch : (batch + 1) * self._global_batch]
            shares = share_out(len(whole), speeds)
            first = sum(shares[: self._rank])
            yield whole[first : first + shares[self._rank]]

    def __len__(self) -> int:
        """Global batches in an epoch."""
        full, left = divmod(self._num_samples, self._global_batch)
        return full + (left >= self._size)
