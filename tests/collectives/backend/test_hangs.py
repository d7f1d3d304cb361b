"""Ops that do not go on, in real processes: rank 0 says who has not come, and where it is."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import signal
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

import collectives
from collectives.engine.hangs import watch
from tests.processes import run

REPORT_S = 2.0
A_WHILE = timedelta(seconds=100)


class Log(logging.Handler):
    """What this process has logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        logging.getLogger("collectives").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def wait(self, store: Any) -> str:
        """The first text; then all that wait for `seen` in the store may go on."""
        deadline = time.monotonic() + 100
        while not self.texts and time.monotonic() < deadline:
            time.sleep(0.05)
        store.set("seen", "")
        return self.texts[0]


def join(store: Any, rank: int, size: int, **options: Any) -> None:
    torch.set_num_threads(1)
    collectives.configure(**{"hang_report_s": REPORT_S, **options})
    dist.init_process_group("narrowgauge", store=dist.PrefixStore("group", store), rank=rank, world_size=size)
    dist.all_reduce(torch.ones(3))


def load_the_data(store: Any) -> None:
    store.wait(["seen"], A_WHILE)  # the late rank stands here


def reported(rank: int, size: int, store: Any, late: int, is_async: bool) -> tuple[list[str], dict[str, Any]]:
    """The late rank comes when rank 0 has reported."""
    log = Log()
    join(store, rank, size)
    if rank == late:
        if rank == 0:
            log.wait(store)
        load_the_data(store)
    work = dist.all_reduce(torch.ones(10), async_op=is_async)
    if is_async:
        if rank == 0:
            log.wait(store)
        work.wait()
    elif rank == 0:
        store.set("seen", "")
    found = collectives.stats()["hangs"]
    dist.destroy_process_group()
    return log.texts, found


def test_rank_0_says_once_who_has_not_come_and_where_it_is() -> None:
    results = run(reported, 3, 1, True)
    (text,) = results[0][0]
    first, second, *stack = text.splitlines()
    assert "s in all_reduce sum of 10 float32 (op 1): rank 1 (" in first
    assert first.endswith(") has not joined it")
    assert "is outside any collective after all_reduce sum of 3 float32 (op 0), at " in second
    assert "in load_the_data: store.wait(" in stack[-1] or "in load_the_data: store.wait(" in stack[-2], stack
    (hang,) = results[0][1].values()
    assert hang["op"] == 1
    assert hang["report"] == text
    assert [name.split(" (")[0] for name in hang["missing"]] == ["rank 1"]
    assert [result for result in results[1:] if result != ([], {})] == []


def test_rank_0_reports_itself() -> None:
    """It waits in no op itself; the others have it look."""
    results = run(reported, 3, 0, True)
    (text,) = results[0][0]
    assert ": rank 0 (" in text.splitlines()[0]
    assert "in wait: time.sleep(0.05)" in text
    assert results[1:] == [([], {})] * 2


def stopped(rank: int, size: int, store: Any) -> str | None:
    log = Log()
    join(store, rank, size)
    text = None
    if rank == 1:
        store.set("pid", str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    work = dist.all_reduce(torch.ones(10), async_op=True)
    if rank == 0:
        text = log.wait(store)
        os.kill(int(store.get("pid")), signal.SIGCONT)
    work.wait()
    dist.destroy_process_group()
    return text


def test_a_stopped_rank_does_not_answer() -> None:
    text = run(stopped, 3)[0]
    assert text is not None
    assert "rank 1 (" in text.splitlines()[0]
    assert "does not answer: it is stopped or swapped out" in text


def in_c(rank: int, size: int, store: Any) -> list[str]:
    """Rank 0 sleeps in C with Python's lock held: its watch cannot take note."""
    log = Log()
    join(store, rank, size)
    if rank == 0:
        ctypes.PyDLL(None).sleep(int(REPORT_S + 3 * watch.ANSWER_S))
    dist.all_reduce(torch.ones(10))
    dist.destroy_process_group()
    return log.texts


@pytest.mark.slow
def test_where_rank_0_is_in_a_c_call_another_rank_reports() -> None:
    _, text, other = run(in_c, 3)
    assert other == []
    assert len(text) == 1
    assert "rank 0 (" in text[0].splitlines()[0]
    assert "in a C call that holds Python's lock" in text[0]


def nothing_to_say(rank: int, size: int, store: Any) -> list[str]:
    log = Log()
    join(store, rank, size, hang_report_s=0)
    if rank == 1:
        time.sleep(3)
    dist.all_reduce(torch.ones(10))
    dist.destroy_process_group()
    return log.texts


@pytest.mark.slow
def test_no_report_if_none_is_wanted() -> None:
    assert run(nothing_to_say, 2) == [[], []]


def mismatched(rank: int, size: int, store: Any, is_async: bool) -> str:
    join(store, rank, size)

    def left_branch() -> Any:
        return dist.all_reduce(torch.ones(11), async_op=is_async)

    def right_branch() -> Any:
        return dist.all_reduce(torch.ones(10), async_op=is_async)

    def whichever() -> None:
        work = right_branch() if rank else left_branch()
        work.wait()

    with pytest.raises(collectives.OpMismatch) as caught:
        whichever()
    dist.destroy_process_group()
    return str(caught.value)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_mismatch_shows_both_lines(is_async: bool) -> None:
    here = "tests/collectives/backend/test_hangs.py:"
    for text in run(mismatched, 2, is_async):
        assert text.count(here) == 2, text
        one, other = text.split(" is in another collective at the same place (it is ")
        assert "in mismatched.<locals>." in one
        assert "in mismatched.<locals>." in other
        assert ("left_branch" in one) != ("left_branch" in other)
        assert ("left_branch" in one) == ("sum of 11" in one)


def mismatched_in_silence(
    rank: int, size: int, store: Any, report_s: float, timeout_s: float
) -> tuple[str, int | None]:
    """Rank 1 waits for the root of its broadcast, and the others for rank 1's part: nobody sends a header."""
    join(store, rank, size, hang_report_s=report_s)
    dist.group.WORLD.set_timeout(timedelta(seconds=timeout_s * (1 + rank)))  # who comes to it first asks the others
    call = functools.partial(dist.broadcast, src=0) if rank == 1 else dist.all_reduce
    with pytest.raises(collectives.OpMismatch) as caught:
        call(torch.ones(1000))
    return str(caught.value), caught.value.culprit


@pytest.mark.parametrize(("report_s", "timeout_s"), [(0, 3), (1, 10_000)], ids=["timeout", "report"])
def test_different_collectives_in_which_nobody_sends_a_header(report_s: float, timeout_s: float) -> None:
    """It is an error when the timeout comes, or when a report finds it."""
    for text, culprit in run(mismatched_in_silence, 3, report_s, timeout_s):
        assert culprit == 1, text
        assert "called different collectives. rank 0" in text
        assert "all_reduce sum of 1000 float32 (op 1)" in text
        assert "broadcast of 4000 uint8" in text
        assert "in mismatched_in_silence" in text


def timed_out(rank: int, size: int, store: Any) -> tuple[str, int | None]:
    """Ranks 2 and 3 come, and wait for rank 0 or each other as the forest has it; rank 1 does not."""
    join(store, rank, size)
    dist.group.WORLD.set_timeout(timedelta(seconds=3))  # from now on: a loaded machine takes longer to form a group
    if rank == 1:
        load_the_data(store)
        with pytest.raises(collectives.CollectiveError):
            dist.barrier()
        return "", None
    with pytest.raises(collectives.OpTimeout) as caught:
        dist.barrier()
    if rank == 0:
        store.set("seen", "")
    return str(caught.value), caught.value.culprit


def test_a_timeout_blames_who_did_not_come() -> None:
    results = run(timed_out, 4)
    for text, culprit in (results[0], *results[2:]):
        assert culprit == 1, text
        assert "barrier (op 1)" in text
        assert "all_reduce max" not in text
        assert "in load_the_data" in text
