"""Checks whether this machine can train. Each check says what it found and, if that is a problem, what to do.

launcher doctor
python bootstrap.py launcher.commands.doctor pair      one of the two processes of the all-reduce check
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from collectives import UsageError
from collectives.options import Options, current
from launcher.bootstrap import command
from launcher.run.agent import MASTER_PORTS, Agent, free_port

SHM_WANTED_BYTES = 256 * 1024**2
PAIR_TIMEOUT_S = 120.0
PAIR_ELEMENTS = 10007


@dataclass(frozen=True)
class Check:
    """What was checked, what was found, and what to do if it is not "ok". A state of "look" is a problem for some uses:
    look at it."""

    name: str
    state: Literal["ok", "look", "wrong"]
    found: str
    advice: str | None = None


def examine() -> Iterator[Check]:
    """All checks, the quick ones first."""
    yield from _versions()
    checks: list[Callable[[], Check]] = [_ports, _shared_memory, _interfaces, _engine]
    for check in checks:
        yield check()
    settings = _settings()
    yield settings
    if settings.state == "ok":
        yield _pair()


def format_check(check: Check) -> str:
    """One check as lines of text."""
    line = f"{check.state:<6} {check.name:<15} {check.found}"
    return line + (f"\n{'':<23}-> {check.advice}" if check.advice else "")


def _versions() -> Iterator[Check]:
    """The versions that narrowgauge's metadata requires, against those installed."""
    metadata = importlib.metadata.metadata("narrowgauge")
    wanted = [Requirement(f"Python{metadata['Requires-Python']}")]
    wanted += [Requirement(line) for line in importlib.metadata.requires("narrowgauge") or [] if "extra ==" not in line]
    for requirement in wanted:
        name = requirement.name
        if name not in ("Python", "torch", "ray", "numba", "numpy"):
            continue
        try:
            found = platform.python_version() if name == "Python" else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "wrong", "not installed", f"pip install '{requirement}'")
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        advice = f"tested with {name}{requirement.specifier}; pip install '{requirement}'"
        yield Check(name, "ok" if fits else "wrong", found, None if fits else advice)


def _ports() -> Check:
    span = f"{MASTER_PORTS.start} to {MASTER_PORTS.stop - 1}"
    try:
        port = free_port("127.0.0.1")
    except OSError as error:
        return Check("ports", "wrong", str(error), f"free some TCP ports from {span} for rank 0's store")
    return Check("ports", "ok", f"{port} of {span} is free for rank 0's store")


def _shared_memory() -> Check:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except FileNotFoundError:
        return Check("/dev/shm", "wrong", "not there", "mount a tmpfs on /dev/shm; Ray keeps its objects there")
    found = f"{usage.free / 1024**2:,.0f} MiB free of {usage.total / 1024**2:,.0f}"
    if usage.free < SHM_WANTED_BYTES:
        advice = (
            f"make at least {SHM_WANTED_BYTES // 1024**2} MiB free; in Docker start the container with --shm-size=1g"
        )
        return Check("/dev/shm", "wrong", found, advice)
    return Check("/dev/shm", "ok", found)


def _interfaces() -> Check:
    """The address at which this machine is reached, against the one that its own name resolves to."""
    addresses = {
        address.address: name
        for name, found in psutil.net_if_addrs().items()
        for address in found
        if address.family == socket.AF_INET
    }
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(("192.0.2.1", 9))  # sends nothing: asks the routing table only
            outward = str(route.getsockname()[0])
        except OSError:
            return Check("network", "look", "loopback only: no route to other machines", "enough for the local cluster")
    found = f"others reach this machine at {outward} ({addresses.get(outward, 'no interface of its own')})"
    try:
        by_name = socket.gethostbyname(socket.gethostname())
    except OSError:
        by_name = "no address"
    if by_name == outward:
        return Check("network", "ok", found)
    advice = (
        f"its name {socket.gethostname()!r} resolves to {by_name}, which libraries then advertise to other machines. "
        f"The launcher names the interface for them; under torchrun on several machines set "
        f"NARROWGAUGE_INTERFACE={addresses.get(outward)} and GLOO_SOCKET_IFNAME={addresses.get(outward)}"
    )
    return Check("network", "look", found, advice)


def _engine() -> Check:
    try:
        seconds = Agent().warm_up()
    except RuntimeError as error:
        return Check("engine", "wrong", str(error), "until it compiles, `collectives: {backend: gloo}` runs without it")
    return Check("engine", "ok", f"compiled in {seconds:.1f} s" if seconds > 1 else "compiled before, in Numba's cache")


def _settings() -> Check:
    """The NARROWGAUGE_* variables of this shell, which the two processes of the next check inherit."""
    advice = "correct the variable, or unset it"
    names = [name for name in Options.__dataclass_fields__ if os.environ.get(f"NARROWGAUGE_{name.upper()}")]
    try:
        options = current()
    except UsageError as error:
        field, _, rest = str(error).removeprefix("NARROWGAUGE_").partition(" ")
        return Check("settings", "wrong", f"NARROWGAUGE_{field.upper()} {rest}", advice)
    if options.topology and not Path(options.topology).is_file():
        return Check("settings", "wrong", f"NARROWGAUGE_TOPOLOGY is {options.topology!r}: no such file", advice)
    known = sorted(psutil.net_if_addrs())
    if options.interface and options.interface not in known:
        found = f"NARROWGAUGE_INTERFACE is {options.interface!r}; this machine has {', '.join(known)}"
        return Check("settings", "wrong", found, advice)
    return Check("settings", "ok", ", ".join(f"NARROWGAUGE_{name.upper()}" for name in names) or "none set")


def _pair() -> Check:
    """Two processes as two emulated hosts, so that the sum goes over TCP."""
    name, advice = "all-reduce", "until this passes, `collectives: {backend: gloo}` runs without the engine"
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port("127.0.0.1")),
        "NARROWGAUGE_TOKEN": secrets.token_hex(16),
        "NARROWGAUGE_BACKEND": "narrowgauge",
    }
    started = time.perf_counter()
    processes = [
        subprocess.Popen(
            command("launcher.commands.doctor", "pair"),
            env={**os.environ, **common, "RANK": str(rank), "NARROWGAUGE_HOST": f"host-{rank}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=PAIR_TIMEOUT_S)[0].strip() for process in processes]
    except subprocess.TimeoutExpired:
        return Check(name, "wrong", f"two processes did not finish within {PAIR_TIMEOUT_S:g} s", advice)
    finally:
        for process in processes:
            process.kill()
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        if process.returncode:
            return Check(name, "wrong", f"rank {rank} of 2 failed: {output}", advice)
    return Check(
        name, "ok", f"two processes agree on the sum ({time.perf_counter() - started:.1f} s with torch's import)"
    )


def _pair_rank() -> None:
    """One rank: sum (rank + 1) * [0, 1, 2, ...] over both and compare."""
    import torch
    import torch.distributed as dist

    import collectives

    dist.init_process_group("narrowgauge")
    values = (dist.get_rank() + 1) * torch.arange(PAIR_ELEMENTS, dtype=torch.float32)
    dist.all_reduce(values)
    differ = int((values != 3 * torch.arange(PAIR_ELEMENTS)).sum())
    ops = collectives.stats()["ops"]
    dist.destroy_process_group()
    if differ or not ops:
        sys.exit(
            f"{differ} of {PAIR_ELEMENTS} elements differ, {ops} operations used the engine; expected 0 and at least 1"
        )


if __name__ == "__main__":
    _pair_rank()
