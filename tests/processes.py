"""Functions run by several processes that share a store: the truth about a distributed program.

    results = run(worker, 4, "narrowgauge")      # worker(rank, size, store, "narrowgauge") in each of 4 processes

Processes are forked from a server that has torch and the engine loaded, which saves seconds for each. A process that
is still running at the deadline is made to print the stack of each of its threads and killed.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PRELOADED = [
    "torch",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.nn.parallel",
    "collectives.backend.process_group",
    "tests.warm_engine",
]
AFTERMATH_S = 60.0  # once a process has failed, the others have this long to end too


@dataclass(frozen=True)
class Died:
    """In place of a result: the process ended without one."""

    exit_code: int | None


class WorkerError(AssertionError):
    """At least one process raised, died or hung; the message has their tracebacks."""


def run(
    worker: Callable[..., Any],
    size: int,
    *arguments: Any,
    deadline_s: float = 240.0,
    may_die: Collection[int] = (),
    environment: dict[str, str] | None = None,
) -> list[Any]:
    """``worker(rank, size, store, *arguments)`` in `size` processes; their results by rank.

    Args:
        worker: a function at the top level of an importable module; its results must pickle.
        deadline_s: seconds for all of it.
        may_die: ranks that are expected to end without a result; theirs is `Died`.
        environment: variables set in each process.

    Raises:
        WorkerError: with the traceback of each process that raised, and the stacks of each that hung.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        stacks = [Path(folder) / f"rank-{rank}" for rank in range(size)]
        pipes, processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_main,
                args=(worker, rank, size, store.port, theirs, str(stacks[rank]), environment or {}, arguments),
                daemon=True,
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        results, problems = _collect(pipes, processes, stacks, deadline_s, may_die)
    if problems:
        raise WorkerError("\n".join(problems))
    return results


def _main(
    worker: Callable[..., Any],
    rank: int,
    size: int,
    port: int,
    pipe: multiprocessing.connection.Connection,
    stacks: str,
    environment: dict[str, str],
    arguments: tuple[Any, ...],
) -> None:
    gc.freeze()  # what was there before the fork is nobody's garbage; collecting it takes a second
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open(stacks, "w") as file:
        faulthandler.enable(file)
        try:
            store = dist.TCPStore("127.0.0.1", port, is_master=False)
            pipe.send(("done", worker(rank, size, store, *arguments)))
        except BaseException:
            pipe.send(("raised", traceback.format_exc()))
        finally:
            pipe.close()
            faulthandler.disable()


def _collect(
    pipes: list[multiprocessing.connection.Connection],
    processes: list[Any],
    stacks: list[Path],
    deadline_s: float,
    may_die: Collection[int],
) -> tuple[list[Any], list[str]]:
    deadline = time.monotonic() + deadline_s
    results: list[Any] = [None] * len(pipes)
    problems: list[str] = []
    pending = dict(enumerate(pipes))
    while pending and (left_s := deadline - time.monotonic()) > 0:
        for ready in multiprocessing.connection.wait(list(pending.values()), left_s):
            rank = next(rank for rank, pipe in pending.items() if pipe is ready)
            del pending[rank]
            try:
                kind, value = ready.recv()
            except EOFError:
                processes[rank].join(60.0)
                results[rank] = Died(processes[rank].exitcode)
                if rank not in may_die:
                    problems.append(f"rank {rank} died with {results[rank]}:\n{stacks[rank].read_text()}")
                continue
            results[rank] = value
            if kind == "raised":
                problems.append(f"rank {rank} raised:\n{value}")
        if problems:
            deadline = min(deadline, time.monotonic() + AFTERMATH_S)
    for rank in pending:
        os.kill(processes[rank].pid, signal.SIGABRT)
        processes[rank].join(60.0)
        problems.append(f"rank {rank} still ran at the deadline:\n{stacks[rank].read_text()}")
    for rank, process in enumerate(processes):
        process.join(60.0)
        if process.is_alive():
            process.kill()
            process.join()
            problems.append(f"rank {rank} gave its result, but did not end")
    return results, problems
