"""A worker: the process that runs the user's script as one rank, and its environment.

    python -u launcher/bootstrap.py --beside FOLDER launcher.run.worker ENTRYPOINT [ARGS...]

The environment is torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, ...) plus NARROWGAUGE_*, so a script written for torchrun
runs unchanged; `collectives.install` makes its "gloo" or "nccl" mean our engine, unless the job's backend is gloo.
Where the job has a codec, its DDP models are attached, too.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import importlib
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import collectives
from launcher import progress
from launcher.config.job import Job, is_file
from launcher.errors import EntrypointError
from launcher.record.seats import RankPlacement

PARENT = "NARROWGAUGE_PARENT"


def environment(
    job: Job,
    seat: RankPlacement,
    world_size: int,
    *,
    master: tuple[str, int],
    token: str,
    checkpoints: Path,
    traces: Path,
    resume_from: Path | None = None,
    shares: Sequence[float] = (),
) -> dict[str, str]:
    """The environment of one rank. The job's `env` may replace OMP_NUM_THREADS and PYTHONFAULTHANDLER, and nothing else
    that is set here.

    Args:
        master: address and port of rank 0's store.
        token: the secret of this attempt, by which ranks recognize each other.
        checkpoints: what `progress.checkpoint_dir()` gives.
        traces: where traces go if the job asks for them.
        resume_from: checkpoints to continue from if `checkpoints` has none.
        shares: each rank's initial samples of a global batch; empty if no speeds are known.
    """
    chosen = job.collectives
    variables = {
        "RANK": seat.rank,
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": seat.local_rank,
        "LOCAL_WORLD_SIZE": seat.local_world_size,
        "GROUP_RANK": seat.host_index,
        "GROUP_WORLD_SIZE": seat.host_count,
        "MASTER_ADDR": master[0],
        "MASTER_PORT": master[1],
        "NARROWGAUGE_HOST": seat.host if seat.emulated else None,
        "NARROWGAUGE_TOKEN": token,
        "NARROWGAUGE_BACKEND": chosen.backend,
        "NARROWGAUGE_CODEC": chosen.codec,
        "NARROWGAUGE_STREAMS": chosen.streams,
        "NARROWGAUGE_SLICE_BYTES": chosen.slice_bytes,
        "NARROWGAUGE_TIMEOUT_S": chosen.timeout_s,
        "NARROWGAUGE_HANG_REPORT_S": f"{chosen.hang_report_s:g}",
        "NARROWGAUGE_INTERFACE": chosen.interface,
        "NARROWGAUGE_EMULATE": ",".join(f"{mbit:g}" for mbit in job.emulate) if job.emulate else None,
        "NARROWGAUGE_TOPOLOGY": chosen.topology,
        "NARROWGAUGE_TRACE": traces if chosen.trace else None,
        "NARROWGAUGE_REBALANCE": int(job.rebalance),
        progress.CHECKPOINT_DIR: checkpoints,
        progress.GLOBAL_BATCH: job.global_batch,
        "NARROWGAUGE_CHECKPOINT_EVERY": job.checkpoint.every_steps,
        "NARROWGAUGE_CHECKPOINT_KEEP": job.checkpoint.keep,
        "NARROWGAUGE_RESUME_FROM": resume_from,
        "NARROWGAUGE_SHARES": ",".join(f"{share:g}" for share in shares) or None,
    }
    # Each rank gets the threads of its CPUs. torch would take all cores, and the ranks of a node would slow each other.
    threads = {"OMP_NUM_THREADS": str(job.workers.cpus), "PYTHONFAULTHANDLER": "1"}
    return {**threads, **job.env, **{name: str(value) for name, value in variables.items() if value is not None}}


def main(arguments: list[str]) -> int:
    """Run the entrypoint and give exit status 0; an exception is printed, reported, and ends the process with 1."""
    _die_with_parent()
    _dump_stacks_on_sigterm()
    # Ray's worker processes block SIGINT, and the mask is inherited; a script's own handler would never run.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if os.environ["NARROWGAUGE_BACKEND"] != "gloo":
        collectives.install(replace=("gloo", "nccl"))
    if os.environ["NARROWGAUGE_CODEC"] != "none":
        from collectives.training.auto_attach import attach_new_models

        attach_new_models()
    try:
        run(arguments[0], arguments[1:])
    # Not BaseException: sys.exit keeps its status, and a KeyboardInterrupt is the user's.
    except Exception as error:
        sys.stdout.flush()  # before the traceback, which goes to the same log
        traceback.print_exception(type(error), error, _from_user_code(error.__traceback__))
        sys.stderr.flush()
        progress.report_exception(error)
        sys.last_value = error  # as for an uncaught one; the engine's exit handler looks here and aborts the peers
        _end_now(1)
    progress.report_finished()
    return 0


def run(entrypoint: str, arguments: list[str]) -> None:
    """Run a file, a module or a function as the main program, with its arguments in `sys.argv`.

    Raises:
        EntrypointError: it is not there.
    """
    if is_file(entrypoint):
        path = Path(entrypoint).resolve()
        if not path.is_file():
            raise EntrypointError(
                f"no script {path} on this node; on a cluster only what lies below the folder of `launcher submit` "
                "travels"
            )
        sys.argv = [str(path), *arguments]
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")
        return
    module, _, function = entrypoint.partition(":")
    sys.argv = [entrypoint, *arguments]
    sys.path.insert(0, os.getcwd())
    if not function:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    target = getattr(importlib.import_module(module), function, None)
    if not callable(target):
        raise EntrypointError(f"no function {function!r} in module {module!r}; entrypoint: module:function names one")
    target()


def _die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, however that happens. An agent killed by
    SIGKILL, or a node's Ray that is stopped, can't clean up; this needs nobody's cooperation."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    # The agent may have died between fork and prctl; then no signal comes any more.
    if os.getppid() != int(os.environ.pop(PARENT)):
        os._exit(1)


def _dump_stacks_on_sigterm() -> None:
    """Have SIGTERM write the stack of every thread to the log, even from within a C call, before it ends the process.
    Children made by fork do not: a multiprocessing pool ends its processes by SIGTERM, and nothing is wrong then."""
    faulthandler.register(signal.SIGTERM, all_threads=True, chain=True)
    os.register_at_fork(after_in_child=lambda: faulthandler.unregister(signal.SIGTERM))


def _end_now(status: int) -> NoReturn:
    """Run the exit handlers and exit, without waiting for threads and without the seconds that the interpreter takes to
    free its memory: the other ranks and the user are waiting for the exit status."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _from_user_code(frames: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this file and of runpy; all of it if there are no others."""
    ours = (__file__, runpy.__file__, "<frozen runpy>", importlib.__file__)
    frame = frames
    while frame is not None and frame.tb_frame.f_code.co_filename in ours:
        frame = frame.tb_next
    return frame or frames


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
