"""`launcher probe`: the links between the hosts of a job file's workers, measured where they would run.

The job's own entrypoint is replaced by `work`, which measures as one rank; rank 0 sends the topology to the launcher
with `progress.note`, which reaches it from any node. It also caches the topology on its node, and the next job uses it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from collectives.errors import UsageError
from collectives.probe import command
from collectives.topology import Topology
from launcher import progress
from launcher.config.job import Job
from launcher.monitor.terminal import open_view, print_summary
from launcher.submit import run_job

NOTE = "probe"
MAX_NAME_LENGTH = 58  # with "-probe" it is still a valid job name


def probe(job: Job, save: Path | None, as_json: bool) -> dict[str, Any]:
    """Measure the links between a job's hosts and show them on stdout.

    Args:
        save: file for the topology, which a job file's collectives.topology takes.
        as_json: print the topology as JSON, and the run's progress on stderr.

    Returns:
        The run's summary.

    Raises:
        UsageError: the job's links are emulated, or the folder of `save` does not exist.
        OSError: the file cannot be written.
        ClusterError: from `run`.
    """
    if job.emulate is not None:
        raise UsageError(
            "emulate: these links are as fast as the job file says; for this machine's own: --set emulate=null"
        )
    if save is not None:
        command.check(save)  # report an error before Ray starts
    out = sys.stderr if as_json else sys.stdout
    view = open_view(out)
    try:
        summary = run_job(_as_job(job), view)
    finally:
        view.close()
    if summary["status"] != "finished":
        print_summary({**summary, "notes": {}}, out)
        return summary
    note = summary["notes"][NOTE]
    topology = Topology.from_json(note["topology"])
    print(f"folder {summary['folder']}\n", file=out)
    print(topology.to_json() if as_json else command.format_topology(topology, note["took_s"]), end="")
    if save is not None:
        save.write_text(topology.to_json(), encoding="utf-8")
    return summary


def work() -> None:
    """What each worker runs."""
    topology, took_s = command.probe()
    if int(os.environ["RANK"]) == 0:
        progress.note(**{NOTE: {"topology": topology.to_json(), "took_s": took_s}})


def _as_job(job: Job) -> Job:
    """The job with the probe as its entrypoint. It measures with plain sockets, so the engine is not compiled."""
    plain = job.collectives.model_copy(update={"backend": "gloo", "topology": None})
    changes = {"name": f"{job.name[:MAX_NAME_LENGTH]}-probe", "entrypoint": f"{__name__}:work", "args": []}
    return job.model_copy(update={**changes, "collectives": plain})
