"""Sits next to a worker on its node: starts it, passes on what it says, tells how it ended, ends it.

It knows nothing of Ray; `cluster.py` makes an actor of it. A worker is a child process with a session of its own, so
that a Ctrl-C in the terminal doesn't reach it and everything that it started can be ended with it. One thread starts
the child and stays until the child has ended: the kernel kills the child when that thread is gone (see worker.py), so
no worker outlives its agent.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
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
from launcher.progress import REPORT_FD
from launcher.record.events import Event, Exited, Logged, Started, from_script
from launcher.run.worker import PARENT

MASTER_PORTS = range(20000, 30000)
"""Below the range that the kernel hands out by itself, so that a port found free stays free until rank 0 takes it."""
VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")


INTERFACE, TOPOLOGY = "NARROWGAUGE_INTERFACE", "NARROWGAUGE_TOPOLOGY"


@dataclass(frozen=True)
class WorkerSpec:
    """What to start: one rank's entrypoint with arguments, environment, working directory and log. Without a `cwd` it
    is the agent's own."""

    rank: int
    entrypoint: str
    args: tuple[str, ...]
    env: dict[str, str]
    cwd: str | None
    log: Path
    address: str


class Agent:
    """Watches one worker. Methods may be called from several threads."""

    def __init__(self) -> None:
        self._events: queue.Queue[Event] = queue.Queue()
        self._process: subprocess.Popen[bytes] | None = None

    def version(self) -> str:
        """Of narrowgauge, on this node."""
        return __version__

    def free_port(self, address: str) -> int:
        """A TCP port that rank 0 can listen on at `address`."""
        for port in random.sample(MASTER_PORTS, 200):
            with socket.socket() as probe, suppress(OSError):
                probe.bind((address, port))
                return port
        raise OSError(f"no free port at {address} among 200 tried of {MASTER_PORTS.start} to {MASTER_PORTS.stop - 1}")

    def devices(self) -> dict[str, str]:
        """The variables by which Ray gave this agent its accelerator, such as CUDA_VISIBLE_DEVICES."""
        return {name: os.environ[name] for name in VISIBLE_DEVICES if os.environ.get(name)}

    def warm_up(self) -> float:
        """Compile the engine into this node's cache, if it isn't there; seconds that took.

        Raises:
            RuntimeError: it doesn't compile; the message is the compiler's.
        """
        done = subprocess.run(
            [sys.executable, "-c", "import collectives; print(collectives.warm_up())"], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"the engine does not compile on {socket.gethostname()}:\n{done.stderr.strip()}")
        return float(done.stdout.split()[-1])

    def start(self, order: WorkerSpec) -> None:
        """Start the worker; returns once its process runs.

        Raises:
            RuntimeError: it can't be started here; the message names node, folder and log.
        """
        running: Future[None] = Future()
        threading.Thread(target=self._keep, args=(order, running), daemon=True).start()
        running.result()

    def next_events(self, timeout_s: float) -> list[Event]:
        """What happened since the last call; waits up to `timeout_s` seconds for something to happen."""
        with suppress(queue.Empty):
            first = self._events.get(timeout=timeout_s)
            return [first, *self._waiting()]
        return []

    def stop(self, force: bool) -> None:
        """Send SIGTERM, or SIGKILL if forced, to the worker and all that it started."""
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL if force else signal.SIGTERM)

    def _waiting(self) -> list[Event]:
        events: list[Event] = []
        with suppress(queue.Empty):
            while True:
                events.append(self._events.get_nowait())
        return events

    def _keep(self, order: WorkerSpec, running: Future[None]) -> None:
        """The life of the worker, from start to end."""
        try:
            output = _Output(order, self._events.put)
            process, report_read = _spawn(order, output)
        except Exception as error:
            running.set_exception(
                RuntimeError(
                    f"cannot start rank {order.rank} on {socket.gethostname()} ({order.address}), in the folder "
                    f"{order.cwd or os.getcwd()} with the log {order.log}: {error}"
                )
            )
            return
        self._process = process
        self._events.put(Started(order.rank, time.time(), process.pid, str(output.log), network(order).get(INTERFACE)))
        reports = threading.Thread(target=self._read_reports, args=(order.rank, report_read), daemon=True)
        reports.start()
        running.set_result(None)
        code = process.wait()
        ended_at = time.time()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        reports.join(timeout=2)
        output.join(timeout_s=2)
        self._events.put(Exited(order.rank, ended_at, code))

    def _read_reports(self, rank: int, fd: int) -> None:
        """Pass on what the script reports; what can't be read goes to its log. The rank is the one that we gave it."""
        with os.fdopen(fd, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    self._events.put(replace(from_script(json.loads(line)), rank=rank))
                except ValueError as error:
                    self._events.put(Logged(rank, time.time(), f"launcher: unreadable report: {error}\n"))


def _spawn(order: WorkerSpec, output: _Output) -> tuple[subprocess.Popen[bytes], int]:
    """The worker's process, and the end of the pipe that its reports come out of."""
    report_read, report_write = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "launcher.run.worker", order.entrypoint, *order.args],
            env=_environment(order, output.log, report_write),
            cwd=order.cwd,
            stdin=subprocess.DEVNULL,
            stdout=output.fd,
            stderr=subprocess.STDOUT,
            pass_fds=[report_write],
            start_new_session=True,
        )
    except BaseException:
        os.close(report_read)
        raise
    finally:
        os.close(report_write)
        os.close(output.fd)
    return process, report_read


class _Output:
    """Where a worker writes: the run's own log, or, on a node that doesn't share the run folder, a local log whose text
    is also passed on as events."""

    def __init__(self, order: WorkerSpec, emit: Callable[[Event], None]) -> None:
        self._rank, self._emit = order.rank, emit
        self._shipper: threading.Thread | None = None
        if order.log.parent.is_dir():
            self.log = order.log
            self.fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            return
        self.log = Path(tempfile.gettempdir()) / "narrowgauge" / order.log.parent.parent.name / order.log.name
        self.log.parent.mkdir(parents=True, exist_ok=True)
        read, self.fd = os.pipe()
        self._shipper = threading.Thread(target=self._ship, args=(read,), daemon=True)
        self._shipper.start()

    def join(self, timeout_s: float) -> None:
        if self._shipper is not None:
            self._shipper.join(timeout_s)

    def _ship(self, fd: int) -> None:
        with os.fdopen(fd, encoding="utf-8", errors="replace") as lines, self.log.open("a", encoding="utf-8") as copy:
            for line in lines:
                copy.write(line)
                copy.flush()
                self._emit(Logged(self._rank, time.time(), line))


def _environment(order: WorkerSpec, log: Path, report_fd: int) -> dict[str, str]:
    own = {REPORT_FD: str(report_fd), PARENT: str(os.getpid()), "NARROWGAUGE_LOG": str(log)}
    return {**os.environ, **order.env, **network(order), **_topology(order), **own}


def network(order: WorkerSpec) -> dict[str, str]:
    """The variables that name the network interface: the job's choice, or the one that has the node's address, so that
    no library takes 127.0.1.1 from a hosts file instead.

    Raises:
        OSError: no interface has that address.
    """
    chosen = order.env.get(INTERFACE)
    if chosen is not None:
        return {"GLOO_SOCKET_IFNAME": order.env.get("GLOO_SOCKET_IFNAME", chosen.split(",")[0]), INTERFACE: chosen}
    known = {found.address: name for name, addresses in psutil.net_if_addrs().items() for found in reversed(addresses)}
    if order.address not in known:
        have = ", ".join(sorted(f"{name} {address}" for address, name in known.items() if ":" not in address))
        raise OSError(
            f"no network interface here has the address {order.address} by which Ray knows this node, only {have}; "
            "start Ray with `--node-ip-address=` one of them, or name the interface in the job's collectives.interface"
        )
    name = known[order.address]
    return {"GLOO_SOCKET_IFNAME": order.env.get("GLOO_SOCKET_IFNAME", name), INTERFACE: name}


def _topology(order: WorkerSpec) -> dict[str, str]:
    """The topology's path from where the worker starts, which a script may leave."""
    path = order.env.get(TOPOLOGY)
    return {TOPOLOGY: str(Path(order.cwd or ".", path).resolve())} if path else {}
