"""Tensors made in inference mode, in which only threads that are in it may write to them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import collectives
from tests.processes import run


def ones(rank: int, *shape: int) -> Tensor:
    return torch.full(shape, rank + 1.0)


def calls(rank: int) -> dict[str, tuple[Callable[..., Any], list[Any], list[Tensor], list[float]]]:
    """By name: the function, its arguments, the tensors with the result, the first element of each."""

    def pair() -> list[Tensor]:
        return [ones(rank, 4), ones(rank, 4)]

    lists, exchanged, gathered, coalesced, scattered, same = (
        pair(),
        pair(),
        pair(),
        pair(),
        ones(rank, 4),
        ones(rank, 4),
    )
    strided, sent, mean = ones(rank, 4, 6).t(), ones(rank, 4, 6).t(), ones(rank, 4)
    on_root = rank == 0
    return {
        "all_gather": (dist.all_gather, [lists, ones(rank, 4)], lists, [1, 2]),
        "all_to_all": (dist.all_to_all, [exchanged, pair()], exchanged, [1, 2]),
        "gather": (
            dist.gather,
            [ones(rank, 4), gathered if on_root else None],
            gathered,
            [1, 2] if on_root else [2, 2],
        ),
        "scatter": (dist.scatter, [scattered, pair() if on_root else None], [scattered], [1]),
        "coalesced": (dist.all_reduce_coalesced, [coalesced], coalesced, [3, 3]),
        "strided": (dist.all_reduce, [strided], [strided], [3]),
        "broadcast": (dist.broadcast, [sent, 0], [sent], [1]),
        "reduce_scatter": (dist.reduce_scatter, [same, pair()], [same], [3]),
        "mean": (dist.all_reduce, [mean, dist.ReduceOp.AVG], [mean], [1.5]),
    }


def every_combination(rank: int, size: int, store: Any, backend: str) -> None:
    collectives.configure(backend=backend)
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    for made_in_it, called_in_it, is_async in itertools.product((False, True), repeat=3):
        with torch.inference_mode(made_in_it):
            made = calls(rank)
        for name, (function, arguments, results, wanted) in made.items():
            with torch.inference_mode(called_in_it):
                work = function(*arguments, async_op=is_async)
                if is_async:
                    work.wait()
            case = f"{name}, made {made_in_it}, called {called_in_it}, async {is_async}"
            assert [float(each.flatten()[0]) for each in results] == wanted, case
            if not made_in_it:
                results[0].clone().requires_grad_().sum().backward()  # of use to autograd as before
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*all_reduce_coalesced:FutureWarning")
@pytest.mark.parametrize("backend", ["narrowgauge", "gloo"])
def test_results_arrive_in_tensors_of_either_mode(backend: str) -> None:
    run(every_combination, 2, backend)
