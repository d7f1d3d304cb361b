"""Forms the group, and measures each collective with each size on it and on Gloo in turn."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from collectives.backend.c10d import dist
from collectives.backend.process_group import NarrowgaugeGroup
from collectives.bench import limit as limits
from collectives.bench.limit import Limit
from collectives.bench.report import BenchRow, Report
from collectives.bench.trials import Trial, trial_of
from collectives.errors import UsageError
from collectives.options import current
from collectives.planning.plan import Plan
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.version import __version__

MAX_ROUNDS = 7
MAX_SIZE_ROUNDS = 80  # limit for all rounds of a size, ours and Gloo's, in multiples of a round's seconds


@dataclass
class _Group:
    """A process group under test, and the bytes of this rank's memory that its calls have kept so far."""

    group: Any
    kept_bytes: int = 0


@dataclass(frozen=True)
class _Taken:
    """Results of one group in one trial; equal on all ranks. Fields as in `BenchRow`."""

    time_s: float
    wrong: int
    memory_bytes: int
    cpu_s: float
    rounds: int
    calls: int


@dataclass
class _Rounds:
    """Seconds of a call in each round: by this rank's clock, and of its processor time."""

    calls: int
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def run(
    names: Sequence[Collective], sizes: Sequence[int], dtype: str, *,
    codec: str, with_gloo: bool, round_s: float, given_limit: Limit | None, on_progress: Callable[[Report], None],
) -> Report:  # fmt: skip
    """Measure on all ranks; needs torchrun's environment.

    Args:
        sizes: bytes of the messages; rounded to whole elements and equal chunks.
        codec: name of the codec of our all-reduces; Gloo's have none.
        round_s: seconds of a round, which has as many calls as fit, at least one.
        given_limit: used instead of the limit that follows from the group's topology.
        on_progress: called with the report so far, first without rows and then after each.

    Returns:
        A report with a row for each collective and size; `limit_s` in it is for rank 0 only.
    """
    torch.set_num_threads(1)
    dist.init_process_group("narrowgauge")
    ours, groups = dist.group.WORLD, [_Group(dist.group.WORLD)]
    if with_gloo:
        groups.append(_Group(_gloo()))
    limit = given_limit or _limit_of(ours)
    report = Report(
        backend="narrowgauge" if ours.engine is not None else "narrowgauge on Gloo",
        hosts=_hosts(ours),
        dtype=dtype if codec == "none" else f"{dtype} as {codec}",
        round_s=round_s,
        limit=limit.text,
        versions={"narrowgauge": __version__, "torch": torch.__version__},
        rows=(),
    )
    on_progress(report)
    for name in names:
        for num_bytes in sizes:
            report = replace(report, rows=(*report.rows, _row(name, num_bytes, dtype, codec, groups, limit, round_s)))
            on_progress(report)
    dist.destroy_process_group()
    return report


def _gloo() -> Any:
    group = dist.new_group(backend="gloo")
    if isinstance(group, NarrowgaugeGroup):
        raise UsageError("backend gloo is replaced by narrowgauge in this process; call collectives.uninstall() first")
    return group


def _limit_of(ours: NarrowgaugeGroup) -> Limit:
    if ours.engine is None:
        return Limit(None, None)
    options = current()
    was_given = options.topology not in (None, "equal") or options.emulate is not None
    return limits.in_force(ours.engine.topology, ours.engine.links_are_known, was_given)


def _hosts(ours: NarrowgaugeGroup) -> tuple[str, ...]:
    """The host of each rank; on Gloo, where hosts are not measured, the name that each rank has for its own."""
    if ours.engine is not None:
        topology = ours.engine.topology
        return tuple(topology.host_of(rank).name for rank in range(topology.size))
    names: list[str] = [""] * ours.size()
    dist.all_gather_object(names, current().host or os.uname().nodename)
    return tuple(names)


def _row(
    collective: Collective, num_bytes: int, dtype: str, codec: str, groups: Sequence[_Group], limit: Limit,
    round_s: float,
) -> BenchRow:  # fmt: skip
    """One line of the table."""
    trial = trial_of(collective, num_bytes, dtype, codec)
    plan = _plan(groups[0].group, collective, trial.num_bytes, codec)
    ours, *others = _take(trial, groups, round_s)
    gloo = others[0] if others else None
    size = dist.get_world_size()
    return BenchRow(
        collective=collective,
        num_bytes=trial.num_bytes,
        time_s=ours.time_s,
        bus_factor=SPECIFICATIONS[collective].bus_factor(size),
        wrong=ours.wrong,
        memory_bytes=ours.memory_bytes,
        cpu_s=ours.cpu_s,
        rounds=ours.rounds,
        calls=ours.calls,
        plan=plan.algorithm if plan else None,
        predicted_s=plan.predicted_s if plan else None,
        limit_s=limit.seconds(collective, trial.num_bytes, size, codec) if _is_first() else None,
        gloo_time_s=gloo.time_s if gloo else None,
        gloo_wrong=gloo.wrong if gloo else None,
        gloo_memory_bytes=gloo.memory_bytes if gloo else None,
        gloo_cpu_s=gloo.cpu_s if gloo else None,
        gloo_calls=gloo.calls if gloo else None,
    )


def _plan(ours: NarrowgaugeGroup, collective: Collective, num_bytes: int, codec: str) -> Plan | None:
    if ours.engine is None:
        return None
    return ours.engine.plan(collective, num_bytes, SPECIFICATIONS[collective].default_root, codec)


def _is_first() -> bool:
    return bool(dist.get_rank() == 0)


def _take(trial: Trial, groups: Sequence[_Group], round_s: float) -> list[_Taken]:
    """Check, time, check again."""
    before = [_checked_call(trial, group) for group in groups]
    rounds = _timed(trial, groups, round_s)
    after = [_checked_call(trial, group) for group in groups]
    wrong = _over_ranks([first[0] + last[0] for first, last in zip(before, after, strict=True)], dist.ReduceOp.SUM)
    memory = _over_ranks([float(memory_bytes) for _, memory_bytes in before], dist.ReduceOp.MAX)
    return [
        _Taken(
            # A round takes as long as its slowest rank.
            time_s=statistics.median(_over_ranks(each.wall_s, dist.ReduceOp.MAX)),
            wrong=int(wrong[index]),
            memory_bytes=int(memory[index]),
            cpu_s=statistics.mean(_over_ranks(each.cpu_s, dist.ReduceOp.SUM)),
            rounds=len(each.wall_s),
            calls=each.calls,
        )
        for index, each in enumerate(rounds)
    ]


def _checked_call(trial: Trial, group: _Group) -> tuple[int, int]:
    """This rank's wrong elements after one call, and the peak rise of its memory for this group, in bytes."""
    trial.fill()
    trial.wrong()  # allocates its temporaries now, so that they do not count as the call's memory
    before = _reset_peak_memory()
    trial.call(group.group)
    peak, left = _status("VmHWM"), _status("VmRSS")
    risen = group.kept_bytes + max(0, peak - before)
    group.kept_bytes += max(0, left - before)
    return trial.wrong(), risen


def _timed(trial: Trial, groups: Sequence[_Group], round_s: float) -> list[_Rounds]:
    """Rounds of calls on each group, in turn."""
    trial.rest()
    rounds, seconds = [], 0.0
    for group in groups:
        calls, call_s = _calls_of_a_round(trial, group.group, round_s)
        rounds.append(_Rounds(calls))
        seconds += calls * call_s
    for _ in range(max(1, min(MAX_ROUNDS, int(MAX_SIZE_ROUNDS * round_s / seconds)))):
        for group, each in zip(groups, rounds, strict=True):
            wall_s, cpu_s = _calls(trial, group.group, each.calls)
            each.wall_s.append(wall_s / each.calls)
            each.cpu_s.append(cpu_s / each.calls)
    return rounds


def _calls_of_a_round(trial: Trial, group: Any, round_s: float) -> tuple[int, float]:
    """The number of calls that take about `round_s`, and seconds of one; equal on all ranks. Warms the group up."""
    calls = 1
    while True:
        (seconds,) = _over_ranks([_calls(trial, group, calls)[0]], dist.ReduceOp.MAX)
        if seconds >= round_s / 4:
            return max(1, round(calls * round_s / seconds)), seconds / calls
        calls *= 4


def _calls(trial: Trial, group: Any, number: int) -> tuple[float, float]:
    """Seconds of so many calls after a barrier: by the clock, and of this process's processor time."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(number):
        trial.call(group)
    return time.perf_counter() - wall, time.process_time() - cpu


def _over_ranks(values: Sequence[float], op: Any) -> list[float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, op)
    return [float(value) for value in tensor]


def _reset_peak_memory() -> int:
    """Resets the kernel's peak of this process's resident memory; returns the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """A size from /proc/self/status, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
