"""Measures this machine and prints it as an `inventory.Machine` in JSON.

    python bootstrap.py launcher.inventory.measure ADDRESS CPUS [--measure]

It runs as a process of its own, since the number of threads of a math library is fixed when it is loaded. Measuring
takes about a second for each kind of device: products of square matrices, and copies of an array larger than any cache.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

from collectives.transport.tcp import machine_identity
from launcher.bootstrap import command
from launcher.inventory.accelerators import kind_of
from launcher.inventory.inventory import Accelerator, Interface, Machine, Rate, Speed

MEASURE_S = 0.4
"""Seconds of measuring for each figure."""
TIMEOUT_S = 120.0
"""Importing torch on a slow disk takes most of it."""
CPU_SIDE, DEVICE_SIDE = 1024, 8192
"""Rows of the matrices: large enough to reach the peak rate, small enough to run many times in MEASURE_S."""
CPU_COPY_BYTES, DEVICE_COPY_BYTES = 2**27, 2**30
"""Several times the largest caches."""


def run_as_process(address: str, cpus: int, worker_cpus: int, measure: bool) -> str:
    """Run this module as a process and return the JSON that it prints. On a Ray node this is the task.

    Args:
        address: where other nodes reach this one.
        cpus: CPU cores that workers may use; 0: all that this process may use.
        worker_cpus: CPU cores of one worker; speeds are measured with as many threads.
        measure: whether to measure speeds.

    Raises:
        RuntimeError: it fails, or takes longer than TIMEOUT_S; the message ends with its stderr.
    """
    options = ["--measure"] if measure else []
    start = command("launcher.inventory.measure", address, str(cpus), str(worker_cpus), *options)
    env = {**os.environ, "OMP_NUM_THREADS": str(worker_cpus), "MKL_NUM_THREADS": str(worker_cpus)}
    try:
        done = subprocess.run(start, capture_output=True, text=True, env=env, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"measuring {socket.gethostname()} took more than {TIMEOUT_S:g} s") from None
    if done.returncode:
        raise RuntimeError(f"cannot measure {socket.gethostname()}: {done.stderr.strip()[-600:]}")
    return done.stdout


def machine(address: str, cpus: int, worker_cpus: int, measure: bool) -> Machine:
    """The devices, memory and interfaces of this machine, and their speeds if `measure`."""
    speed_cpus = min(worker_cpus, len(os.sched_getaffinity(0)))
    return Machine(
        name=socket.gethostname(),
        address=address,
        cpus=cpus or len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        interfaces=_interfaces(),
        accelerators=_accelerators(measure),
        speed=_cpu_speed() if measure else Speed(),
        speed_cpus=speed_cpus,
        machine=machine_identity(),
    )


def _interfaces() -> list[Interface]:
    """Those that are up and have an IPv4 address, without loopback."""
    stats = psutil.net_if_stats()
    return [
        Interface(name=name, address=address.address, mbit=float(stats[name].speed) or None)
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.") and stats[name].isup
    ]


def _accelerators(measure: bool) -> list[Accelerator]:
    import torch

    if not torch.accelerator.is_available():
        return []
    type_ = str(torch.accelerator.current_accelerator())
    module: Any = torch.get_device_module(type_)
    by_kind: dict[tuple[str, int], list[int]] = {}
    for index in range(torch.accelerator.device_count()):
        properties = module.get_device_properties(index)
        memory = int(properties.total_memory)
        by_kind.setdefault((kind_of(properties.name, memory), memory), []).append(index)
    return [
        Accelerator(
            kind=kind,
            count=len(indices),
            memory_bytes=memory,
            speed=_device_speed(f"{type_}:{indices[0]}", memory) if measure else Speed(),
        )
        for (kind, memory), indices in by_kind.items()
    ]


def _cpu_speed() -> Speed:
    import torch

    return Speed(
        single_flops_per_s=_measured(_product(torch.float32, "cpu", CPU_SIDE), 2.0 * CPU_SIDE**3),
        memory_bytes_per_s=_measured(_copy("cpu", CPU_COPY_BYTES), 2.0 * CPU_COPY_BYTES),
    )


def _device_speed(device: str, memory_bytes: int) -> Speed:
    import torch

    copied = min(DEVICE_COPY_BYTES, memory_bytes // 8)
    return Speed(
        half_flops_per_s=_measured(_product(torch.float16, device, DEVICE_SIDE), 2.0 * DEVICE_SIDE**3),
        single_flops_per_s=_measured(_product(torch.float32, device, DEVICE_SIDE), 2.0 * DEVICE_SIDE**3),
        memory_bytes_per_s=_measured(_copy(device, copied), 2.0 * copied),
    )


def _product(dtype: Any, device: str, side: int) -> Callable[[], None]:
    import torch

    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    result = torch.empty_like(left)
    return _finished(lambda: torch.matmul(left, right, out=result), device)


def _copy(device: str, num_bytes: int) -> Callable[[], None]:
    import torch

    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return _finished(lambda: target.copy_(source), device)


def _finished(begin: Callable[[], object], device: str) -> Callable[[], None]:
    """Start an operation and wait for its end: accelerators run asynchronously."""
    import torch

    def run() -> None:
        begin()
        if device != "cpu":
            torch.accelerator.synchronize(device)

    return run


def _measured(run: Callable[[], None], amount: float) -> Rate:
    """`amount` per run over the mean seconds of a run, after two runs to warm up caches, clocks and kernels."""
    run()
    run()
    runs, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < MEASURE_S:
        run()
        runs += 1
    return Rate(value=amount * runs / seconds, source="measured")


if __name__ == "__main__":
    words = sys.argv[1:]
    found = machine(words[0], int(words[1]), int(words[2]), "--measure" in words)
    print(found.model_dump_json(exclude_none=True))
