"""Groups that cannot form, or lose a rank while they do, with real processes, signals and limits."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import collectives
from collectives.backend.executors import MIN_FORMING_S, wait_for_ranks_s
from collectives.options import Options
from collectives.transport import handshake, rendezvous
from collectives.transport.watched_store import WatchedStore
from tests.paths import REPOSITORY
from tests.processes import Died, run

TIMEOUT_S, AT_ONCE_S = 300.0, 60.0  # what a mistake must not cost, and what even a busy machine needs not
TOKEN = {"NARROWGAUGE_TOKEN": "0123456789abcdef"}


def init(rank: int, size: int, store: Any, timeout_s: float = TIMEOUT_S) -> None:
    dist.init_process_group(
        "narrowgauge", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
    )


def outcome(do: Callable[[], object]) -> tuple[str, float]:
    """What it raised, "" if nothing, and the seconds that it took."""
    started = time.monotonic()
    try:
        do()
    except Exception as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - started
    return "", time.monotonic() - started


def on_key(key: str, do: Callable[[], object]) -> None:
    """Do it in this process when it is about to publish that key."""
    publish = WatchedStore.publish

    def then(store: WatchedStore, at: str, value: object) -> None:
        if at == key:
            do()
        publish(store, at, value)

    WatchedStore.publish = then  # type: ignore[method-assign]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wrong_variable(rank: int, size: int, store: Any) -> tuple[str, float]:
    if rank == 1:
        os.environ["NARROWGAUGE_STREAMS"] = "many"
    return outcome(lambda: init(rank, size, store))


@pytest.mark.parametrize("environment", [{}, TOKEN], ids=["no token", "token"])
def test_a_wrong_variable_on_one_host(environment: dict[str, str]) -> None:
    results = run(wrong_variable, 3, environment=environment)
    assert max(seconds for _, seconds in results) < AT_ONCE_S
    assert all("NARROWGAUGE_STREAMS is 'many'; wanted a whole number, or auto" in error for error, _ in results)
    assert all("could not join the group: rank 1 (" in results[rank][0] for rank in (0, 2))


def wrong_token(rank: int, size: int, store: Any, culprit: int, variables: dict[str, str]) -> tuple[str, float]:
    if rank == culprit:
        os.environ.update(variables)
    return outcome(lambda: init(rank, size, store))


@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize(
    "variables",
    [
        {"NARROWGAUGE_TOKEN": "short"},
        {"NARROWGAUGE_TOKEN": "fedcba9876543210", "NARROWGAUGE_STREAMS": "many"},
        {"NARROWGAUGE_TOKEN": "fedcba9876543210", "NARROWGAUGE_INTERFACE": "none0"},
    ],
)
@pytest.mark.parametrize("environment", [{}, TOKEN], ids=["no token", "token"])
def test_a_mistake_on_a_host_that_has_another_token(
    environment: dict[str, str], variables: dict[str, str], culprit: int
) -> None:
    """The others cannot believe its last words, and are told why instead."""
    results = run(wrong_token, 3, culprit, variables, environment=environment)
    assert max(seconds for _, seconds in results) < AT_ONCE_S
    for rank, (error, _) in enumerate(results):
        if rank != culprit:
            assert f"of rank {culprit} is" in error, error
            assert "give all ranks the same NARROWGAUGE_TOKEN" in error


def with_a_store_of_its_own(rank: int, size: int, store: Any, port: int) -> tuple[str, float]:
    """Rank 0 holds the store, as without a launcher, and its process ends as soon as it has failed."""
    if rank == 0:
        collectives.configure(interface="eth77")
    said = outcome(
        lambda: dist.init_process_group(
            "narrowgauge", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size,
            timeout=timedelta(seconds=TIMEOUT_S),
        )
    )  # fmt: skip
    if rank == 0:
        os._exit(1)
    return said


def test_the_last_words_of_the_rank_that_holds_the_store_are_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for error, seconds in run(with_a_store_of_its_own, 3, port, may_die={0})[1:]:
        assert "interface 'eth77' is not here" in error, error
        assert seconds < AT_ONCE_S


def with_a_store_that_ends(rank: int, size: int, store: Any, port: int) -> tuple[str, float]:
    if rank == 0:
        on_key("executor", die)
    return outcome(
        lambda: dist.init_process_group(
            "narrowgauge", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size,
            timeout=timedelta(seconds=TIMEOUT_S),
        )
    )  # fmt: skip


def test_the_death_of_the_rank_that_holds_the_store_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for error, seconds in run(with_a_store_that_ends, 3, port, may_die={0})[1:]:
        assert re.search(r"rank 0 \([^)]*\) died", error), error
        assert seconds < AT_ONCE_S


def dies_in_init(rank: int, size: int, store: Any, key: str) -> tuple[str, float]:
    if rank == 2:
        on_key(key, die)
    return outcome(lambda: init(rank, size, store))


@pytest.mark.parametrize("key", ["executor", "digest", "near"])
def test_a_rank_that_dies_in_init_is_named_at_once(key: str) -> None:
    results = run(dies_in_init, 4, key, may_die={2})
    assert results[2] == Died(-signal.SIGKILL)
    for error, seconds in (results[0], results[1], results[3]):
        assert re.search(r"rank 2 \([^)]*\) died", error), error
        assert seconds < AT_ONCE_S


def dies_in_new_group(rank: int, size: int, store: Any, key: str) -> tuple[str, float]:
    init(rank, size, store)
    dist.barrier()
    if rank == 3:
        on_key(key, die)
    members = [1, 2, 3]
    said = outcome(lambda: dist.new_group(members))
    # Rank 0, which is none of them, is rank 3's judge as well: by the default group.
    assert rank in members or said[0] == ""
    return said


@pytest.mark.parametrize("key", ["about", "listens", "executor", "near"])
def test_a_rank_that_dies_in_new_group_is_named_at_once(key: str) -> None:
    """Even before it has said anything about the new group: the default group's connection to it ends."""
    results = run(dies_in_new_group, 4, key, may_die={3})
    assert results[3] == Died(-signal.SIGKILL)
    for error, seconds in results[1:3]:
        assert re.search(r"rank 2( \([^)]*\))? died", error), error  # rank 2 of the new group
        assert seconds < AT_ONCE_S


def fails_in_new_group(rank: int, size: int, store: Any) -> tuple[str, float]:
    init(rank, size, store)
    if rank == 1:
        collectives.configure(interface="eth77")
    return outcome(lambda: dist.new_group([0, 1, 2]))


def test_a_mistake_in_new_group_is_what_all_report() -> None:
    results = run(fails_in_new_group, 3)
    assert all("interface 'eth77' is not here" in error and seconds < AT_ONCE_S for error, seconds in results)


def after_a_broken_op(rank: int, size: int, store: Any, rank_2_dies: bool) -> tuple[str, float]:
    """The default group breaks. Its processes live, and form new groups; unless one of them ends after all."""
    init(rank, size, store)
    with pytest.raises(collectives.CollectiveError):
        dist.all_reduce(torch.ones(3 + (rank == 2)))
    store.set(f"broken/{rank}", "")
    store.wait([f"broken/{other}" for other in range(size)], timedelta(seconds=100))
    if rank == 2 and rank_2_dies:
        die()
    members = [0, 1, 2] if rank_2_dies else [0, 1]

    def form() -> None:
        group = dist.new_group(members)
        if rank in members:
            tensor = torch.ones(1)
            dist.all_reduce(tensor, group=group)
            assert tensor.item() == 2

    said = outcome(form)
    store.set(f"over/{rank}", "")
    store.wait([f"over/{other}" for other in range(3 - rank_2_dies)], timedelta(seconds=100))
    return said


def test_ranks_whose_default_group_broke_form_a_new_one() -> None:
    assert [error for error, _ in run(after_a_broken_op, 3, False)] == ["", "", ""]


def test_a_rank_that_dies_after_the_default_group_broke_is_noticed_at_once() -> None:
    for error, seconds in run(after_a_broken_op, 3, True, may_die={2})[:2]:
        assert re.search(r"rank 2( \([^)]*\))? gave up", error), error
        assert seconds < AT_ONCE_S


def without_descriptors(rank: int, size: int, store: Any, culprit: int, spare: int) -> tuple[str, float]:
    if rank == culprit:
        used = {int(name) for name in os.listdir("/proc/self/fd")}
        null = os.open(os.devnull, os.O_RDONLY)
        while (fd := os.dup(null)) < max(used):  # no holes
            pass
        limit = fd + 1 + spare
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return outcome(lambda: init(rank, size, store))


@pytest.mark.parametrize(("culprit", "spare"), [(1, 2), (1, 5), (0, 4), (2, 5)])
def test_the_descriptor_limit_of_one_rank_is_reported_as_that(culprit: int, spare: int) -> None:
    results = run(without_descriptors, 3, culprit, spare)
    for error, seconds in results:
        assert re.search(rf"rank {culprit} \([^)]*\): too many open files \(EMFILE\)", error), error
        assert "raise it with `ulimit -n 65536`" in error
        assert seconds < AT_ONCE_S


def pause(seconds: float) -> None:
    """Stop this process, as a debugger or a full swap does."""
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def paused(rank: int, size: int, store: Any, where: str) -> tuple[str, float]:
    done: list[bool] = []

    def once(real: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **named: Any) -> Any:
            if not done:
                done.append(True)
                pause(12.0)
            return real(*arguments, **named)

        return instead

    if where == "connector" and rank == 2:
        handshake.receive_frame_within = once(handshake.receive_frame_within)
    if where == "before hello" and rank == 2:
        rendezvous.introduce = once(rendezvous.introduce)  # type: ignore[attr-defined]
    if where == "acceptor" and rank == 0:
        handshake.Admission.receive = once(handshake.Admission.receive)  # type: ignore[method-assign]
    return outcome(lambda: (init(rank, size, store), dist.barrier()))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["connector", "before hello", "acceptor"])
def test_a_pause_in_the_handshake_does_not_fail_the_group(where: str) -> None:
    assert [error for error, _ in run(paused, 3, where)] == ["", "", ""]


def with_a_strangers_words(rank: int, size: int, store: Any) -> tuple[str, bool]:
    """Somebody who can write to the store has rank 1's engine fail its self-test."""
    if rank == 1:
        publish = WatchedStore.publish

        def overwritten(watched: WatchedStore, key: str, value: object) -> None:
            publish(watched, key, value)
            if key == "executor":
                watched._store.set("executor/1", '- {"fault": "OSError: nothing works", "devices": false}')

        WatchedStore.publish = overwritten  # type: ignore[method-assign]
    error, _ = outcome(lambda: init(rank, size, store))
    return error, dist.is_initialized()


def test_a_stranger_cannot_move_a_group_with_a_token_to_gloo() -> None:
    for error, has_formed in run(with_a_strangers_words, 2, environment=TOKEN):
        assert "what the store has under 'executor' of rank 1" in error
        assert "is not signed: that rank has no token, or a stranger wrote it" in error
        assert not has_formed


def waits_for_rank_1(rank: int, size: int, store: Any) -> tuple[str, float]:
    if rank == 1:
        store.wait(["over"], timedelta(seconds=100))
        return "", 0.0
    said = outcome(lambda: init(rank, size, store, timeout_s=0.01))
    store.set("over", "")
    return said


def test_a_timeout_that_torch_was_given_is_how_long_a_rank_waits_for_the_others() -> None:
    error, seconds = run(waits_for_rank_1, 2)[0]
    assert "rank 1 of 2 did not come to the rendezvous within 0.01 s (wait timeout after 10ms)" in error
    assert seconds < MIN_FORMING_S / 2


@pytest.mark.parametrize(
    ("given_s", "option_s", "waits_s"),
    [(0.01, None, 0.01), (1800.0, None, 1800.0), (1800.0, 1.0, MIN_FORMING_S), (1800.0, 60.0, 60.0), (5.0, 1.0, 5.0)],
)
def test_a_timeout_for_ops_is_none_for_coming(given_s: float, option_s: float | None, waits_s: float) -> None:
    assert wait_for_ranks_s(given_s, Options(timeout_s=option_s)) == waits_s


def slower_than_its_timeout(rank: int, size: int, store: Any) -> tuple[str, float]:
    """Both come at once, then one takes longer to listen than an op may take."""
    if rank == 1:
        on_key("listens", lambda: time.sleep(4.0))
    store.set(f"ready/{rank}", "")
    store.wait([f"ready/{1 - rank}"], timedelta(seconds=100))
    return outcome(lambda: (init(rank, size, store, timeout_s=3.0), dist.all_reduce(torch.ones(1))))


def test_ranks_that_have_come_may_take_longer_than_the_timeout() -> None:
    assert [error for error, _ in run(slower_than_its_timeout, 2)] == ["", ""]


def three_times(rank: int, size: int, store: Any) -> list[bool]:
    """As under torchrun, whose store outlives the groups."""
    kinds = []
    for _ in range(3):
        init(rank, size, store)
        world: Any = dist.group.WORLD
        parts = [world, dist.new_group([0, 1]), *(world.split_group([0, 1]) for _ in range(2))]
        for group in parts:
            tensor = torch.ones(3)
            dist.all_reduce(tensor, group=group)
            assert tensor.tolist() == [2.0] * 3
        kinds.append(world.engine is not None)
        dist.destroy_process_group()
    return kinds


@pytest.mark.parametrize(
    ("environment", "is_native"),
    [({}, True), (TOKEN, True), ({"NARROWGAUGE_BACKEND": "gloo"}, False)],
    ids=["no token", "token", "gloo"],
)
def test_a_group_after_destroy_on_the_same_store(environment: dict[str, str], is_native: bool) -> None:
    assert run(three_times, 2, environment=environment) == [[is_native] * 3] * 2


def tries_again(rank: int, size: int, store: Any) -> tuple[str, str]:
    if rank == 1:
        collectives.configure(interface="eth77")
    first, _ = outcome(lambda: init(rank, size, store))
    collectives.configure(interface=None)
    second, _ = outcome(lambda: (init(rank, size, store), dist.barrier()))
    return first, second


def test_a_group_that_could_not_form_may_form_later() -> None:
    for first, second in run(tries_again, 2):
        assert "interface 'eth77' is not here" in first
        assert second == ""


MAIN_FAILS = """
import sys, threading
import torch, torch.distributed as dist
import collectives

rank = int(sys.argv[1])
dist.init_process_group("narrowgauge", store=dist.FileStore(sys.argv[2], 2), rank=rank, world_size=2)
other = dist.new_group([0, 1])
dist.barrier()
if rank == 0:
    dist.all_reduce(torch.ones(3))
threading.Thread(target=dist.all_reduce, args=(torch.ones(3),), kwargs={"group": other}).start()
raise ValueError("no data left")
"""


def test_an_exception_in_main_reaches_the_others_while_a_helper_waits(tmp_path: Path) -> None:
    """Rank 1's helper waits in one group for rank 0, which waits in the other for rank 1."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", MAIN_FAILS, str(rank), str(tmp_path / "store")],
            stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=200)[1] for process in ranks]
    assert "ended with ValueError: no data left" in said[0]
    assert all(process.returncode for process in ranks)
