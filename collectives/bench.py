"""`torchrun ... -m collectives bench`: how long a collective takes, ours and Gloo in turn, next to what limits it.

Columns, as nccl-tests defines them:

    size     bytes of the message: the larger of what goes into a rank and what comes out
    time     seconds of one call, the mean of a round of calls; the median of all rounds, of the slowest rank
    algbw    size / time
    busbw    algbw times what each rank must send for one byte of it: 2 (n - 1) / n for an all-reduce,
             (n - 1) / n for reduce-scatter, all-gather and all-to-all, 1 for broadcast and reduce
    wrong    elements of the result that are not what they should be, over all ranks
    memory   by how much a rank's resident memory rose at most during the first call, over its size; the worst rank

and the limit. Between hosts it is the plan's bound, whatever the algorithm, if a topology file gives the links' rates;
assumed rates bound nothing, so without one there is none. On one machine it is the time that its cores need to copy
the bytes into the kernel and out again, at the speed of memcpy here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import collectives
from collectives.c10d import dist
from collectives.options import current
from collectives.specification import SPECIFICATIONS

ROUNDS = 7


@dataclass(frozen=True)
class Row:
    """One size's result; seconds, bytes, bytes per second. Gloo's are None where it was not asked for."""

    collective: str
    num_bytes: int
    time_s: float
    algbw: float
    busbw: float
    wrong: int
    memory_bytes: int
    limit_s: float | None
    gloo_time_s: float | None
    gloo_wrong: int | None

    @property
    def ratio(self) -> float | None:
        """How many times Gloo's speed."""
        return None if self.gloo_time_s is None else self.gloo_time_s / self.time_s


@dataclass(frozen=True)
class Trial:
    """A collective on tensors: set the input, run, count what is wrong."""

    fill: Callable[[], None]
    call: Callable[[Any], None]
    wrong: Callable[[], int]


def run(names: Sequence[str], sizes: Sequence[int], with_gloo: bool, round_s: float) -> list[Row]:
    """Measure collectives on all ranks; needs torchrun's environment.

    Args:
        round_s: seconds of a round, which has as many calls as fit, at least one.

    Returns:
        A row for each collective and size, equal on all ranks.
    """
    torch.set_num_threads(1)
    dist.init_process_group("narrowgauge")
    ours, gloo = dist.group.WORLD, dist.new_group(backend="gloo") if with_gloo else None
    copy_bytes_per_s = _copy_bytes_per_s()
    rows = [
        _row(collective, num_bytes, ours, gloo, copy_bytes_per_s, round_s)
        for collective in names
        for num_bytes in sizes
    ]
    dist.destroy_process_group()
    return rows


def _row(collective: str, num_bytes: int, ours: Any, gloo: Any, copy_bytes_per_s: float, round_s: float) -> Row:
    """One line of the table: what a size takes on our group, and in turn on Gloo's if there is one."""
    trial = trial_of(collective, num_bytes)
    groups = [ours] if gloo is None else [ours, gloo]
    wrong, memory_bytes = zip(*(_first_call(trial, group) for group in groups), strict=True)
    seconds = _measure(trial, groups, round_s)
    size = dist.get_world_size()
    factor = bus_factor(collective, size)
    return Row(
        collective=collective,
        num_bytes=num_bytes,
        time_s=seconds[0],
        algbw=num_bytes / seconds[0],
        busbw=num_bytes / seconds[0] * factor,
        wrong=wrong[0],
        memory_bytes=memory_bytes[0],
        limit_s=_limit_s(collective, num_bytes, factor * size * num_bytes, copy_bytes_per_s),
        gloo_time_s=seconds[1] if gloo is not None else None,
        gloo_wrong=wrong[1] if gloo is not None else None,
    )


def bus_factor(collective: str, size: int) -> float:
    """Bytes that each rank must send (on average) for each byte of the message; see nccl-tests' PERFORMANCE page."""
    return {"all_reduce": 2 * (size - 1) / size, "broadcast": 1.0, "reduce": 1.0}.get(collective, (size - 1) / size)


def trial_of(collective: str, num_bytes: int) -> Trial:
    """float32 of `num_bytes` bytes, of which each rank's are known to all: rank + 1 everywhere."""
    rank, size = dist.get_rank(), dist.get_world_size()
    count = max(1, num_bytes // 4)
    chunk = max(1, count // size)
    whole, part = torch.empty(count), torch.empty(chunk)
    all_parts, out_parts = torch.empty(chunk * size), torch.empty(chunk * size)
    total, mine = size * (size + 1) / 2, rank + 1.0
    owners = torch.arange(1.0, size + 1).repeat_interleave(chunk)
    trials = {
        "all_reduce": Trial(
            lambda: _set(whole, mine),
            lambda group: dist.all_reduce(whole, group=group),
            lambda: _differ(whole, total),
        ),
        "reduce": Trial(
            lambda: _set(whole, mine),
            lambda group: dist.reduce(whole, 0, group=group),
            lambda: _differ(whole, total) if rank == 0 else 0,
        ),
        "broadcast": Trial(
            lambda: _set(whole, mine),
            lambda group: dist.broadcast(whole, 0, group=group),
            lambda: _differ(whole, 1.0),
        ),
        "all_gather": Trial(
            lambda: _set(part, mine),
            lambda group: dist.all_gather_into_tensor(all_parts, part, group=group),
            lambda: _differ(all_parts, owners),
        ),
        "reduce_scatter": Trial(
            lambda: _set(all_parts, mine),
            lambda group: dist.reduce_scatter_tensor(part, all_parts, group=group),
            lambda: _differ(part, total),
        ),
        "all_to_all": Trial(
            lambda: _set(all_parts, mine),
            lambda group: dist.all_to_all_single(out_parts, all_parts, group=group),
            lambda: _differ(out_parts, owners),
        ),
    }
    return trials[collective]


def _set(tensor: Tensor, value: float) -> None:
    tensor.fill_(value)


def _differ(tensor: Tensor, wanted: float | Tensor) -> int:
    return int((tensor != wanted).sum())


def _first_call(trial: Trial, group: Any) -> tuple[int, int]:
    """Wrong elements of one call over all ranks, and the most that a rank's memory rose. Also the warm-up."""
    trial.fill()
    trial.wrong()  # so that the memory of the comparison is not counted as the call's
    before = _reset_peak_memory()
    trial.call(group)
    rise = max(0, _status("VmHWM") - before)
    wrong = _over_ranks(float(trial.wrong()), dist.ReduceOp.SUM)
    return int(wrong), int(_over_ranks(float(rise), dist.ReduceOp.MAX))


def _reset_peak_memory() -> int:
    """Bytes resident now; the kernel's high-water mark starts from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def _measure(trial: Trial, groups: Sequence[Any], round_s: float) -> list[float]:
    """Seconds of a call on each group, in turn, so that a change of the machine's mood meets them alike."""
    calls = []
    for group in groups:
        started = time.perf_counter()
        trial.call(group)
        calls.append(max(1, int(round_s / _over_ranks(time.perf_counter() - started, dist.ReduceOp.MAX))))
    rounds: list[list[float]] = [[] for _ in groups]
    for _ in range(ROUNDS):
        for group, number, seconds in zip(groups, calls, rounds, strict=True):
            trial.fill()
            dist.barrier()
            started = time.perf_counter()
            for _ in range(number):
                trial.call(group)
            seconds.append((time.perf_counter() - started) / number)
    return [_over_ranks(statistics.median(seconds), dist.ReduceOp.MAX) for seconds in rounds]


def _over_ranks(value: float, op: Any) -> float:
    tensor = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(tensor, op)
    return float(tensor)


def _limit_s(collective: str, num_bytes: int, sent_bytes: float, copy_bytes_per_s: float) -> float | None:
    """The plan's bound over known links; with all ranks on one machine two copies of every byte, on all its cores."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", "0")) == dist.get_world_size():
        return 2 * sent_bytes / (copy_bytes_per_s * (os.cpu_count() or 1))
    if current().topology is None:
        return None
    return collectives.plan(collective=collective, num_bytes=num_bytes).bound_s


def _copy_bytes_per_s() -> float:
    """memcpy of one core, on buffers beyond its cache; the best of several, on the slowest rank."""
    source, target = torch.zeros(8 << 20), torch.empty(8 << 20)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - started)
    return -_over_ranks(-source.nbytes / best, dist.ReduceOp.MAX)


def table(rows: Sequence[Row]) -> str:
    """For people: milliseconds and Mbit/s."""
    columns: list[tuple[str, str, int, Callable[[Row], str]]] = [
        ("size", "bytes", 12, lambda row: str(row.num_bytes)),
        ("time", "ms", 10, lambda row: _ms(row.time_s)),
        ("algbw", "Mbit/s", 9, lambda row: f"{row.algbw * 8e-6:.0f}"),
        ("busbw", "Mbit/s", 9, lambda row: f"{row.busbw * 8e-6:.0f}"),
        ("wrong", "", 6, lambda row: str(row.wrong)),
        ("memory", "x size", 7, lambda row: f"{row.memory_bytes / row.num_bytes:.2f}"),
        ("limit", "ms", 10, lambda row: _ms(row.limit_s)),
        ("of limit", "", 9, lambda row: "-" if row.limit_s is None else f"{row.limit_s / row.time_s:.2f}"),
        ("Gloo", "ms", 10, lambda row: _ms(row.gloo_time_s)),
        ("wrong", "", 6, lambda row: "-" if row.gloo_wrong is None else str(row.gloo_wrong)),
        ("ratio", "", 7, lambda row: "-" if row.ratio is None else f"{row.ratio:.2f}"),
    ]
    lines = ["".join(f"{name:>{width}}" for name, _, width, _ in columns)]
    lines.append("".join(f"{unit:>{width}}" for _, unit, width, _ in columns))
    lines += ["".join(f"{told(row):>{width}}" for _, _, width, told in columns) for row in rows]
    return "\n".join(lines)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3f}"


def main(options: argparse.Namespace, sizes: Sequence[int]) -> str:
    """Measure; what rank 0 should print, "" on the others."""
    names = list(SPECIFICATIONS) if options.collective == "all" else [options.collective]
    rows = run(names, sizes, not options.no_gloo, options.round_s)
    if int(os.environ["RANK"]) != 0:
        return ""
    if options.json:
        return json.dumps([{**asdict(row), "ratio": row.ratio} for row in rows], indent=2)
    what = f"float32, {os.environ['WORLD_SIZE']} ranks; ratio: how many times Gloo's speed"
    return "\n\n".join(f"{name}, {what}\n{table([row for row in rows if row.collective == name])}" for name in names)
