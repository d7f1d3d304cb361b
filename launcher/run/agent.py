"""Runs beside a worker on its node: starts it, passes on its reports, reports its exit status, stops it.

It knows nothing of Ray; `cluster.py` makes an actor of it. A worker is a child process and not the actor itself, so
that a crash, an os._exit or a hang in a C call of the user's script leaves somebody who can say what happened and stop
it.

The child has a session of its own: a Ctrl-C in the terminal does not reach it, and everything it has started can be
ended with it by its process group. One thread starts the child and waits for its end. The kernel kills the child when
that thread ends (PR_SET_PDEATHSIG, see worker.py), which is tied to the thread that forked and not to the process. So
the child must not be started from one of Ray's threads, which come and go; and no worker outlives its agent.

Three ways lead from the worker to the launcher: reports through a pipe, exit status through wait, and output through
the log in the run's folder. Where that folder is not shared, output takes a second pipe and travels as events.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from collectives.version import __version__
from launcher.bootstrap import command
from launcher.config.job import is_file
from launcher.progress import REPORT_FD
from launcher.record.events import Event, Exited, Logged, Started, from_script
from launcher.run.worker import PARENT

MASTER_PORTS = range(20000, 30000)
"""For rank 0's store. Below the range that the kernel assigns by itself, so that a port found free is still free when
rank 0 binds it."""
OWN_ENTRYPOINTS = ("launcher.commands.bench:work", "launcher.commands.probe:work")
"""Of `launcher bench` and `launcher probe`, whose workers run code of ours."""
VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")
"""Set by Ray for an actor with accelerators."""

INTERFACE, TOPOLOGY = "NARROWGAUGE_INTERFACE", "NARROWGAUGE_TOPOLOGY"


def free_port(address: str) -> int:
    """A TCP port that rank 0 can listen on at `address`, of this thread's network.

    Raises:
        OSError: none of 200 random ones is free.
    """
    # At random and not in order: two runs that start on one machine at the same time would find the same port.
    for port in random.sample(MASTER_PORTS, 200):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((address, port))
            return port
    raise OSError(f"no free port at {address} among 200 tried of {MASTER_PORTS.start} to {MASTER_PORTS.stop - 1}")


@dataclass(frozen=True)
class WorkerSpec:
    """What to start: one rank's entrypoint with arguments, environment, working directory and log. A `cwd` of None is
    the agent's own: where Ray has unpacked the working directory."""

    rank: int
    entrypoint: str
    args: tuple[str, ...]
    env: dict[str, str]
    cwd: str | None
    log: Path
    address: str


class Agent:
    """Watches one worker. Methods may be called from several threads, since `next_events` is always waiting in one."""

    def __init__(self) -> None:
        self._events: queue.Queue[Event] = queue.Queue()
        self._process: subprocess.Popen[bytes] | None = None

    def version(self) -> str:
        """Of narrowgauge, on this node."""
        return __version__

    def free_port(self, address: str) -> int:
        """See `free_port`."""
        return free_port(address)

    def devices(self) -> dict[str, str]:
        """The variables in which Ray has named this agent's accelerator, such as CUDA_VISIBLE_DEVICES."""
        return {name: os.environ[name] for name in VISIBLE_DEVICES if os.environ.get(name)}

    def warm_up(self) -> float:
        """Compile the engine into this node's cache, if it is not there yet.

        Returns:
            Seconds that took.

        Raises:
            RuntimeError: it does not compile; the message is the compiler's.
        """
        # In a process of its own: a crash of the compiler would take the agent along, and LLVM would stay in its
        # memory.
        done = subprocess.run(command("launcher.run.warm_up"), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the engine does not compile on {socket.gethostname()}:\n{done.stderr.strip()}")
        return float(done.stdout.split()[-1])

    def start(self, spec: WorkerSpec) -> None:
        """Start the worker; returns once its process runs.

        Raises:
            RuntimeError: it cannot be started here; the message names node, folder and log.
        """
        # Daemon, so that the agent's process can end while the thread waits; the worker then dies with it.
        running: Future[None] = Future()
        threading.Thread(target=self._keep, args=(spec, running), daemon=True).start()
        running.result()

    def next_events(self, timeout_s: float) -> list[Event]:
        """Events since the last call; if there are none, waits up to `timeout_s` seconds for the first."""
        with suppress(queue.Empty):
            # One event wakes the call, and all that came with it travel along: one message of Ray's, not one for each.
            first = self._events.get(timeout=timeout_s)
            return [first, *self._waiting()]
        return []

    def stop(self, force: bool) -> None:
        """Send SIGTERM, or SIGKILL if forced, to the worker and all processes of its session."""
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL if force else signal.SIGTERM)

    def _waiting(self) -> list[Event]:
        events: list[Event] = []
        with suppress(queue.Empty):
            while True:
                events.append(self._events.get_nowait())
        return events

    def _keep(self, spec: WorkerSpec, running: Future[None]) -> None:
        """Start the worker and stay until its end, in a thread of its own (see above)."""
        try:
            output = _Output(spec, self._events.put)
            process, report_read = _spawn(spec, output)
        except Exception as error:
            running.set_exception(
                RuntimeError(
                    f"cannot start rank {spec.rank} on {socket.gethostname()} ({spec.address}), in the folder "
                    f"{spec.cwd or os.getcwd()} with the log {spec.log}: {error}"
                )
            )
            return
        self._process = process
        self._events.put(Started(spec.rank, time.time(), process.pid, str(output.log), network(spec).get(INTERFACE)))
        reports = threading.Thread(target=self._read_reports, args=(spec.rank, report_read), daemon=True)
        reports.start()
        running.set_result(None)
        code = process.wait()
        ended_at = time.time()
        # Data loaders and the like that outlive the worker would hold both pipes open, and its accelerator.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # Exited comes last, after everything that the worker sent. Bounded: a daemon with a session of its own was not
        # in the group and may keep a pipe open.
        reports.join(timeout=2)
        output.join(timeout_s=2)
        self._events.put(Exited(spec.rank, ended_at, code))

    def _read_reports(self, rank: int, fd: int) -> None:
        """Pass on the script's reports; an unreadable one becomes a remark in the log. The rank is replaced by the
        known one: a script may have changed RANK, and the supervisor would blame somebody else."""
        with os.fdopen(fd, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    self._events.put(replace(from_script(json.loads(line)), rank=rank))
                except ValueError as error:
                    self._events.put(Logged(rank, time.time(), f"launcher: unreadable report: {error}\n"))


def _spawn(spec: WorkerSpec, output: _Output) -> tuple[subprocess.Popen[bytes], int]:
    """The worker's process, and the reading end of the pipe for its reports."""
    report_read, report_write = os.pipe()
    try:
        process = subprocess.Popen(
            command("launcher.run.worker", spec.entrypoint, *spec.args, beside=_user_folder(spec)),
            env=_environment(spec, output.log, report_write),
            cwd=spec.cwd,
            stdin=subprocess.DEVNULL,  # a script that asks a question gets an error instead of waiting forever
            stdout=output.fd,
            stderr=subprocess.STDOUT,
            pass_fds=[report_write],  # by number in NARROWGAUGE_REPORT_FD; all other descriptors are closed
            start_new_session=True,
        )
    except BaseException:
        os.close(report_read)
        raise
    finally:
        # Our copies of the child's ends: while they are open, reading never meets the end of the file.
        os.close(report_write)
        os.close(output.fd)
    return process, report_read


def _user_folder(spec: WorkerSpec) -> str | None:
    """The folder that the user's code finds its neighbours in; None: the entrypoint is ours."""
    if spec.entrypoint in OWN_ENTRYPOINTS:
        return None
    cwd = Path(spec.cwd or os.getcwd())
    return str((cwd / spec.entrypoint).resolve().parent if is_file(spec.entrypoint) else cwd)


class _Output:
    """Where a worker writes: the log in the run's folder, or, on a node that does not share the folder, a local log
    whose lines are also passed on as events.

    A shared log needs no thread and no copy, and its last lines are there even if the agent dies. Whether the folder
    is shared is decided by the `logs` folder, which the launcher made before any worker was started.
    """

    def __init__(self, spec: WorkerSpec, emit: Callable[[Event], None]) -> None:
        self._rank, self._emit = spec.rank, emit
        self._shipper: threading.Thread | None = None
        if spec.log.parent.is_dir():
            self.log = spec.log
            self.fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            return
        self.log = Path(tempfile.gettempdir()) / "narrowgauge" / spec.log.parent.parent.name / spec.log.name
        self.log.parent.mkdir(parents=True, exist_ok=True)
        read, self.fd = os.pipe()
        self._shipper = threading.Thread(target=self._ship, args=(read,), daemon=True)
        self._shipper.start()

    def join(self, timeout_s: float) -> None:
        if self._shipper is not None:
            self._shipper.join(timeout_s)

    def _ship(self, fd: int) -> None:
        # The local copy outlives a lost connection to the launcher.
        with os.fdopen(fd, encoding="utf-8", errors="replace") as lines, self.log.open("a", encoding="utf-8") as copy:
            for line in lines:
                copy.write(line)
                copy.flush()
                self._emit(Logged(self._rank, time.time(), line))


def _environment(spec: WorkerSpec, log: Path, report_fd: int) -> dict[str, str]:
    # Later ones win: neither the node's environment nor the job's `env` may change what ties the worker to its agent.
    own = {REPORT_FD: str(report_fd), PARENT: str(os.getpid()), "NARROWGAUGE_LOG": str(log)}
    return {**os.environ, **spec.env, **network(spec), **_topology(spec), **own}


def network(spec: WorkerSpec) -> dict[str, str]:
    """The variables that name the network interface: the job's choice, or the one that has the node's address. Left to
    themselves, libraries resolve the host's name, which many distributions map to 127.0.1.1 in /etc/hosts.

    Raises:
        OSError: no interface has that address.
    """
    chosen = spec.env.get(INTERFACE)
    if chosen is not None:  # may be a list, for several streams; Gloo takes one
        return {"GLOO_SOCKET_IFNAME": spec.env.get("GLOO_SOCKET_IFNAME", chosen.split(",")[0]), INTERFACE: chosen}
    known = {found.address: name for name, addresses in psutil.net_if_addrs().items() for found in reversed(addresses)}
    if spec.address not in known:
        have = ", ".join(sorted(f"{name} {address}" for address, name in known.items() if ":" not in address))
        raise OSError(
            f"no network interface here has the address {spec.address} by which Ray knows this node, only {have}; "
            "start Ray with `--node-ip-address=` one of them, or name the interface in the job's collectives.interface"
        )
    name = known[spec.address]
    return {"GLOO_SOCKET_IFNAME": spec.env.get("GLOO_SOCKET_IFNAME", name), INTERFACE: name}


def _topology(spec: WorkerSpec) -> dict[str, str]:
    """The topology's path made absolute, since a script may change its working directory."""
    path = spec.env.get(TOPOLOGY)
    return {TOPOLOGY: str(Path(spec.cwd or ".", path).resolve())} if path else {}
