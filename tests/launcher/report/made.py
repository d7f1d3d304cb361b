"""Run folders as the launcher writes them, of runs that nobody has to wait for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from collectives.planning.planner import plan
from collectives.topology import Host, Pair, Site, Topology
from launcher.config.job import Job
from launcher.record.events import Event, Exited, Noted, Planned, Raised, Reported, Started
from launcher.record.run_dir import RunDir
from launcher.record.seats import Node, RankPlacement
from launcher.record.tally import Tally

T0 = 1_790_000_000.0
NASTY = "<script>alert('x')</script> & \"quotes\" {{ 1 + 1 }}"


def topology(hosts: int, ranks: int, *, sites: bool = False, pairs: bool = False) -> Topology:
    """Hosts of unequal links."""
    made = [
        Host(
            f"box-{index}",
            tuple(range(index * ranks // hosts, (index + 1) * ranks // hosts)),
            up_bytes_per_s=125e6 / (1 + index % 3),
            down_bytes_per_s=125e6 / (1 + index % 2),
        )
        for index in range(hosts)
    ]
    names = [host.name for host in made]
    return Topology(
        tuple(made),
        (Site("north", tuple(names[: hosts // 2]), 20e6, 20e6), Site("south", tuple(names[hosts // 2 :]), 30e6, 25e6))
        if sites
        else (),
        tuple(Pair(names[0], name, 5e6) for name in names[1:]) if pairs else (),
    )


def seats(ranks: int, hosts: int) -> list[RankPlacement]:
    made = []
    for host in range(hosts):
        here = range(host * ranks // hosts, (host + 1) * ranks // hosts)
        for local, rank in enumerate(here):
            node = Node(f"id-{host}", f"box-{host}", f"10.0.0.{host + 1}", 8)
            made.append(RankPlacement(rank, local, len(here), host, hosts, f"box-{host}", False, node))
    return made


def events(ranks: int, steps: int, planned: dict[str, Any] | None, *, fails: bool = False) -> list[Event]:
    """A run of unequal ranks; rank 1 is the slow one."""
    made: list[Event] = [Started(rank, T0 + rank / 100, 1000 + rank, f"logs/rank-{rank}.log") for rank in range(ranks)]
    made += [Noted(0, T0 + 1, {"remark": NASTY})]
    for step in range(1, steps + 1):
        at = T0 + 5 + 0.2 * step
        for rank in range(ranks):
            compute_s = 0.15 if rank == 1 else 0.08 + 0.01 * math.sin(step)
            wait_s = 0.02 if rank == 1 else 0.09
            waits = {"rank 1 (box-0)": wait_s * 0.8, "rank 0 (box-0)": wait_s * 0.2}
            loss = 5 * math.exp(-step / 40) + 1.5 + 0.05 * math.sin(step)
            made.append(
                Reported(
                    rank, at + rank / 1000, step, steps, loss, 512, wait_s, 4_000_000, 8 + rank % 3, compute_s, waits
                )
            )
        if planned is not None and step == 1:
            made.append(Planned(0, at + 0.1, planned))
    end = T0 + 6 + 0.2 * steps
    if fails:
        made.append(Raised(1, end, "ValueError", f"no such thing: {NASTY}"))
        made += [Exited(rank, end + 0.1 + rank / 100, 1 if rank == 1 else -15) for rank in range(ranks)]
    else:
        made += [Exited(rank, end + rank / 100, 0) for rank in range(ranks)]
    return made


def folder(
    runs: Path,
    *,
    ranks: int = 4,
    hosts: int = 2,
    steps: int = 30,
    fails: bool = False,
    planned: bool = True,
    summary: bool = True,
    sites: bool = False,
    pairs: bool = False,
    extra: Sequence[Event] = (),
) -> Path:
    """Write a run; gives its folder."""
    job = Job.model_validate(
        {
            "name": f"made-{ranks}", "entrypoint": "train.py", "args": [NASTY, "--steps", str(steps)],
            "workers": {"count": ranks, "hosts": hosts}, "runs_dir": str(runs),
        }
    )  # fmt: skip
    run = RunDir.create(job)
    links = topology(hosts, ranks, sites=sites, pairs=pairs)
    made = plan(links, "all_reduce", 25_000_000).summary() if planned and ranks > 1 else None
    happened = [*events(ranks, steps, made, fails=fails), *extra]
    tally = Tally(ranks)
    for event in happened:
        run.append(event)
        tally.on(event)
    run.write_plan({"seats": [asdict(seat) for seat in seats(ranks, hosts)], "collectives": made if steps else None})
    for rank in range(ranks):
        run.log(rank).write_text(f"hello\nTraceback (most recent call last):\n  File {NASTY}\nValueError: {NASTY}\n")
    if summary:
        cause = {"rank": 1, "host": "box-0", "what": f"ValueError: {NASTY}", "log": str(run.log(1)), "others": []}
        run.write_summary(
            {
                "name": job.name, "id": run.id, "status": "failed" if fails else "finished", "folder": str(run.path),
                "backend": "narrowgauge" if planned else "gloo", "world_size": ranks, **tally.figures(),
                "heldout_loss": None, "seconds_to_first_step": 9.5 if steps else None, "wall_s": 20.0 + steps / 5,
                "notes": {"remark": NASTY}, "versions": {"python": "3.11"}, "failure": cause if fails else None,
            }
        )  # fmt: skip
    return run.path
