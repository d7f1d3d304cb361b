"""All ranks take Gloo if one must or wants to, and say why. That it then does everything: see the contract."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist

import collectives
from collectives.transport.control import LEFT, Ending, ending
from collectives.transport.rendezvous import Connections
from tests.processes import run


def outcome(rank: int, size: int, store: Any) -> tuple[bool, list[str]]:
    """Whether the group runs natively, and the warnings that forming it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    native = dist.group.WORLD.engine is not None  # type: ignore[union-attr]
    tensor = torch.ones(1000, dtype=torch.bfloat16)
    dist.all_reduce(tensor, dist.ReduceOp.AVG)
    assert tensor[0].item() == 1.0
    dist.destroy_process_group()
    return native, [str(each.message) for each in caught if issubclass(each.category, RuntimeWarning)]


def failing_on_rank_1(rank: int, size: int, store: Any) -> tuple[bool, list[str]]:
    if rank == 1:
        from collectives.engine import selftest

        def broken() -> float:
            raise OSError("no compiler in this machine")

        selftest.warm_up = broken
    return outcome(rank, size, store)


def asked_for_by_rank_2(rank: int, size: int, store: Any) -> tuple[bool, list[str]]:
    if rank == 2:
        collectives.configure(backend="gloo")
    return outcome(rank, size, store)


def test_failed_self_test_moves_all_ranks_and_names_the_culprit() -> None:
    for native, said in run(failing_on_rank_1, 3):
        assert not native
        assert said == [
            "this group runs on Gloo, because the native engine failed its self-test on "
            "rank 1: OSError: no compiler in this machine"
        ]


def test_one_rank_that_asks_for_gloo_moves_all_and_is_named() -> None:
    for native, said in run(asked_for_by_rank_2, 3):
        assert not native
        reason = "the options of ranks [2] ask for it, those of the others do not"
        assert said == [f"this group runs on Gloo, because {reason}"]


def refused(rank: int, size: int, store: Any, which: str) -> str:
    with pytest.raises(collectives.RendezvousError) as caught:
        (failing_on_rank_1 if which == "self-test" else asked_for_by_rank_2)(rank, size, store)
    return str(caught.value)


@pytest.mark.parametrize(
    ("which", "reason"), [("self-test", "rank 1: OSError: no compiler"), ("asked", "the options of ranks [2] ask")]
)
def test_with_a_token_a_group_does_not_move_to_gloo_by_itself(which: str, reason: str) -> None:
    for error in run(refused, 3, which, environment={"NARROWGAUGE_TOKEN": "0123456789abcdef"}):
        assert reason in error
        assert "give all ranks backend='gloo' if that is meant" in error


def test_asking_on_all_ranks_is_no_reason_to_warn() -> None:
    assert run(outcome, 2, environment={"NARROWGAUGE_BACKEND": "gloo"}) == [(False, [])] * 2


def test_native_is_the_rule() -> None:
    assert run(outcome, 2) == [(True, [])] * 2


def how_rank_0_went(rank: int, size: int, store: Any) -> Ending | None:
    """Rank 0 closes its control connections for Gloo; what rank 1 sees of that before it closes its own."""
    if rank == 0:
        collectives.configure(backend="gloo")
    close, seen = Connections.close, list[Ending]()

    def looking(connections: Connections) -> None:
        deadline = time.monotonic() + 60
        while rank == 1 and not seen and time.monotonic() < deadline:
            seen.extend(filter(None, [ending(connections.control[0])]))
            time.sleep(0.01)
        close(connections)

    Connections.close = looking  # type: ignore[method-assign]
    outcome(rank, size, store)
    return next(iter(seen), None)


def test_a_rank_that_goes_on_with_gloo_has_not_died() -> None:
    assert run(how_rank_0_went, 2) == [None, LEFT]
