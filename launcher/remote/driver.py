"""`python -m launcher.remote.driver`: carries out a run on a cluster, as the driver of a Ray job, in the unpacked
working directory. `client.py` starts it there.

If the folder that the submitter made for the run is there, too, the storage is shared and the run is kept in it.
Otherwise it is kept in the home folder of this node, and whoever looks at the run gets it through the feed.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from collectives.version import __version__
from launcher.config.job import Job
from launcher.errors import ClusterError, LauncherError
from launcher.planning.known_machines import unpacked
from launcher.record.run_dir import RunDir
from launcher.record.run_state import EXIT_STATUS
from launcher.remote.feed import FedRunDir, Feed, FeedView
from launcher.remote.ray_jobs import METADATA, force_is_wanted
from launcher.run.context import RunContext
from launcher.run.run import run


def main() -> int:
    """Carry out the run that the job's metadata tells, and give its exit status."""
    told = json.loads(json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"][METADATA])
    if told["version"] != __version__:
        raise ClusterError(
            f"the submitter has narrowgauge {told['version']}, this node has {__version__}; install the same version "
            "in the environment that Ray runs in, on every node"
        )
    job = Job.model_validate(told["job"])
    feed = Feed(sys.stdout)
    run_dir = FedRunDir.fed(folder(told, job), feed)
    view = FeedView(run_dir, feed, sys.stdout)
    on_cluster = job.model_copy(update={"cluster": job.cluster.model_copy(update={"address": "auto"})})
    name = f"{job.name}-{told['id']}"
    resumed = earlier(told["resumed"]) if told["resumed"] else None
    by_force = functools.partial(force_is_wanted, name)
    context = RunContext(run_dir, told["submitted_at"], None, by_force, resumed, unpacked(told["remembered"]))
    summary = run(on_cluster, view, follow_logs=True, context=context)
    return EXIT_STATUS[summary["status"]]


def folder(told: dict[str, Any], job: Job, home: Path | None = None) -> RunDir:
    """The run's folder: the submitter's, if it is here, too, or a new one in the home folder."""
    theirs = RunDir(Path(told["folder"]), job.name, told["id"])
    try:
        if json.loads(theirs.cluster.read_text(encoding="utf-8"))["token"] == told["token"]:
            return theirs
    except (OSError, ValueError, KeyError):
        pass  # another machine's path, or none
    ours = RunDir((home or Path.home()) / "narrowgauge" / f"{job.name}-{told['id']}", job.name, told["id"])
    ours.make(job)
    return ours


def earlier(folder: str, home: Path | None = None) -> Path:
    """The folder of a run that is to be resumed: as the submitter names it, or where a driver keeps what isn't shared;
    as named if it is in neither place, and rank 0 complains."""
    theirs, ours = Path(folder), (home or Path.home()) / "narrowgauge" / Path(folder).name
    return ours if (ours / "checkpoints").is_dir() and not any((theirs / "checkpoints").glob("step-*")) else theirs


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LauncherError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
