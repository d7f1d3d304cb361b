"""A Ray node in each host, with one CPU per rank of the host. Started by `ray start`, as on real machines."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from launcher.config.lab_file import LabFile
from launcher.errors import LabError
from launcher.lab import inside
from launcher.lab.network import INTERFACE
from launcher.lab.record import LabRecord, Started
from launcher.lab.signals import signals_ignored

Node: TypeAlias = "subprocess.Popen[bytes]"

PORT = 6379
START_TIMEOUT_S = 120.0
STOP_S = 10.0
_READY = "Ray runtime started"
"""What `ray start` prints once its node has registered."""
_OBJECT_STORE_BYTES = 80 * 1024**2
"""Just above Ray's minimum: the hosts share one machine's memory, and gradients do not go through Ray."""


def address(lab: LabFile) -> str:
    """Where the lab's Ray cluster is reached from inside the lab."""
    return f"{lab.address(0)}:{PORT}"


def start(record: LabRecord, *, tied: bool, started: Callable[[int], None] = lambda pid: None) -> list[Node]:
    """Start the nodes, the first host's before the others', and enter them into the record.

    Args:
        tied: they end with this process.
        started: called with the process group of each node as soon as it exists.

    Returns:
        The process of each node; its children are Ray's own processes.

    Raises:
        LabError: a node did not come up; the message ends with its output. All nodes are ended.
    """
    # A short path: Ray puts Unix sockets below it, whose paths have at most 107 bytes.
    record.temp_dir = tempfile.mkdtemp(prefix="ng-")
    record.save()
    nodes: list[Node] = []
    try:
        for index in range(len(record.lab.hosts)):
            nodes.append(_start_one(record, index, tied))
            started(nodes[-1].pid)
            if index == 0:
                _wait(record, nodes)
        _wait(record, nodes)
    except BaseException:
        stop(record, nodes)
        raise
    return nodes


def stop(record: LabRecord, nodes: list[Node]) -> None:
    """End the nodes of `start`, and remove them from the record."""
    with signals_ignored():
        for node in nodes:
            node.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for node in nodes:
            with suppress(subprocess.TimeoutExpired):
                node.wait(max(deadline - time.monotonic(), 0))
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        shutil.rmtree(str(record.temp_dir), ignore_errors=True)
        record.ray, record.temp_dir = {}, None
        record.save()


@contextmanager
def running(record: LabRecord, started: Callable[[int], None]) -> Iterator[None]:
    """Ray nodes for the duration of the block. If there are none, they are started, and ended with the block."""
    if record.ray and all(node.lives for node in record.ray.values()):
        yield
        return
    if record.ray:
        dead = ", ".join(host for host, node in record.ray.items() if not node.lives)
        raise LabError(f"the Ray node on {dead} has ended; take lab {record.lab.name!r} down and bring it up again")
    nodes = start(record, tied=True, started=started)
    try:
        yield
    finally:
        stop(record, nodes)


def _start_one(record: LabRecord, index: int, tied: bool) -> Node:
    lab = record.lab
    dashboard = ["--include-dashboard=true", f"--dashboard-host={lab.address(0)}"]
    place = ["--head", f"--port={PORT}", *dashboard] if index == 0 else [f"--address={address(lab)}"]
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *place),
        f"--node-ip-address={lab.address(index)}",
        f"--num-cpus={lab.hosts[index].ranks}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        f"--temp-dir={record.temp_dir}/{index}",
    ]
    with _log(record, index).open("wb") as log:
        node = inside.start(lab, index, command, env=environment(record), stdout=log, stderr=log, tied=tied)
    record.ray[lab.hosts[index].name] = Started.of(node.pid)
    record.save()
    return node


def environment(record: LabRecord) -> dict[str, str]:
    """Environment of Ray's nodes, and through them of their workers, and of processes that connect to them."""
    ours = {
        "RAY_ADDRESS": address(record.lab),
        "RAY_raylet_start_wait_time_s": f"{START_TIMEOUT_S:.0f}",
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "NARROWGAUGE_INTERFACE": INTERFACE,
    }
    ranks = [host.ranks for host in record.lab.hosts]
    # A job takes the nodes with the most CPUs first, so only in this order its ranks are where the topology has them.
    if ranks == sorted(ranks, reverse=True):
        ours["NARROWGAUGE_LAB_TOPOLOGY"] = str(record.topology_file)
    # Ray's head demands a token if it finds one in the home folder, and the other nodes do not send it. Nobody outside
    # can reach the lab, so it needs none.
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"  # a job's `python` is this one
    return {"RAY_AUTH_MODE": "disabled", **os.environ, "PATH": path, **ours}


def _wait(record: LabRecord, nodes: list[Node]) -> None:
    """Wait until all nodes have registered, by what they print: `ray start --block` does not return."""
    deadline = time.monotonic() + START_TIMEOUT_S
    waiting = dict(enumerate(nodes))
    while waiting:
        for index, node in list(waiting.items()):
            output = _log(record, index).read_text(errors="replace")
            if _READY in output:
                del waiting[index]
            elif node.poll() is not None or time.monotonic() > deadline:
                end = f"ended with status {node.returncode}" if node.poll() is not None else "is not up"
                raise LabError(
                    f"the Ray node on host {record.lab.hosts[index].name!r} {end}, {START_TIMEOUT_S:.0f} s allowed; "
                    f"it wrote: {output[-2000:].strip() or 'nothing'}"
                )
        time.sleep(0.1)


def _log(record: LabRecord, index: int) -> Path:
    return Path(str(record.temp_dir)) / f"node-{index}.log"
