"""Which samples of each global batch a rank gets, by measured speeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.utils.data

from collectives.backend.c10d import dist
from collectives.errors import UsageError
from collectives.training.apportion import apportion
from collectives.training.batch_shares import Shares, exchange_speeds

EPOCH_SEED_STRIDE = 1_000_003  # so that epoch 1 of one seed is not epoch 0 of the next


def local_batch(global_batch: int, group: Any = None) -> int:
    """How many of a global batch's samples this rank should take, by the speeds measured so far. All ranks call it.

    Speeds are samples per second of forward and backward, without waiting, measured by attached models
    (`collectives.attach`) from the weights that were set. Until all ranks have measured two steps, shares are equal.
    Shares add up to `global_batch` and each is at least 1.

    Args:
        global_batch: samples of all ranks together, at least one for each.
        group: a process group; None takes the default one.

    Raises:
        UsageError: fewer samples than ranks.
        CollectiveError: the exchange failed.
    """
    chosen = dist.group.WORLD if group is None else group
    rank: int = dist.get_rank(chosen)
    equal = [1.0] * dist.get_world_size(chosen)
    return apportion(global_batch, exchange_speeds(chosen) or equal)[rank]


class Sampler(torch.utils.data.Sampler[list[int]]):
    """A batch sampler: each rank's part of every global batch. Each sample is used once in an epoch.

        sampler = collectives.Sampler(len(dataset), global_batch=256)
        loader = DataLoader(dataset, batch_sampler=sampler)
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for inputs, targets in loader:
                collectives.set_weight(len(inputs))
                ...
            sampler.balance()

    Shares are equal until `balance` is called; with `rebalance=True` they follow the speeds as in `collectives.Shares`.
    The order of the samples depends on seed and epoch alone, so a global batch holds the same samples whatever the
    number of ranks and their shares. The last global batch of an epoch may be smaller; with fewer samples than ranks it
    is dropped.

    `state_dict` holds the position in the data, in samples, so a run may resume with another number of ranks or another
    global batch: the next pass is the rest of the epoch. It counts batches that were drawn. A DataLoader with workers
    draws ahead, so there set the position by `seek(batches)`.

    Args:
        num_samples: size of the data set.
        global_batch: samples of all ranks together in a step, at least one for each rank.
        shuffle: False keeps the order of the data set.
        seed: of the order; the same on all ranks.
        group: a process group; None takes the default one.
        rebalance: whether shares follow the speeds. Drawing a batch is then a collective at times, so all ranks must
            draw in the same order relative to their other collectives, as they do when they run the same loop.

    Raises:
        UsageError: fewer samples in a batch than ranks.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch: int,
        shuffle: bool = True,
        seed: int = 0,
        group: Any = None,
        rebalance: bool = False,
    ) -> None:
        self._group = dist.group.WORLD if group is None else group
        self._size: int = dist.get_world_size(self._group)
        self._num_samples, self._global_batch = num_samples, global_batch
        self._shuffle, self._seed, self._epoch = shuffle, seed, 0
        self._drawn = 0  # samples of this epoch, by all ranks
        self._resumed = False
        if num_samples < 0:
            raise UsageError(f"Sampler got num_samples={num_samples}; wanted the size of the data set")
        self._shares = Shares(global_batch, rebalance, group)

    def balance(self) -> list[int]:
        """Set shares by the speeds measured so far, if all ranks have some, from the next batch on. All ranks call it.

        Returns:
            The samples of each rank in a full batch.
        """
        speeds = exchange_speeds(self._group)
        if speeds is not None:
            self._shares.take(speeds)
        return list(self._shares.each)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass over the data. The same on all ranks."""
        if epoch != self._epoch:
            self._epoch, self._drawn, self._resumed = epoch, 0, False

    def seek(self, batches: int) -> None:
        """Continue after this many global batches, counted from the start of epoch 0; sets the epoch, too.

        Raises:
            UsageError: a negative number, or the data set has no batch.
        """
        per_epoch = len(self._batches(0))
        if batches < 0 or per_epoch == 0:
            raise UsageError(f"seek got {batches} batches; wanted 0 or more, and at least 1 in an epoch ({per_epoch})")
        self._epoch = batches // per_epoch
        self._drawn, self._resumed = batches % per_epoch * self._global_batch, True

    @property
    def epoch(self) -> int:
        """The current pass over the data, or the next one."""
        return self._epoch

    def state_dict(self) -> dict[str, Any]:
        """Position in the data, and shares; the same on all ranks."""
        return {"epoch": self._epoch, "drawn": self._drawn, "seed": self._seed, "shares": self._shares.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken; the next pass is the rest of its epoch.

        Raises:
            UsageError: the state is of another seed, so its samples are in another order.
        """
        if state["seed"] != self._seed:
            raise UsageError(f"load_state_dict: the state is of seed {state['seed']}; this sampler has {self._seed}")
        self._epoch, self._drawn, self._resumed = state["epoch"], state["drawn"], True
        self._shares.load_state_dict(state["shares"])

    def __iter__(self) -> Iterator[list[int]]:
        first = self._drawn if self._resumed else 0
        order = list(range(self._num_samples))
        if self._shuffle:
            generator = torch.Generator().manual_seed(self._seed + EPOCH_SEED_STRIDE * self._epoch)
            order = torch.randperm(self._num_samples, generator=generator).tolist()
        self._resumed = False
        for begin in self._batches(first):
            whole = order[begin : begin + self._global_batch]
            self._drawn = begin + len(whole)
            self._shares.next()
            yield whole[self._shares.part_of(len(whole))]

    def __len__(self) -> int:
        """Global batches in the next pass: those of an epoch, or after a restart the rest of it."""
        return len(self._batches(self._drawn if self._resumed else 0))

    def _batches(self, first: int) -> range:
        """The first sample of each global batch, from sample `first` of the epoch on.

        A last batch with fewer samples than ranks is left out: each rank needs at least one.
        """
        return range(first, max(first, self._num_samples - self._size + 1), self._global_batch)
