"""`python .narrowgauge launcher.remote.driver`: carries out a run on a cluster, as the driver of a Ray job, in the
unpacked working directory. `client.py` has Ray start it.

It runs on the cluster and not with the submitter so that the run survives the submitter's laptop. Its input is the
job's metadata, which Ray stores with the job and gives to it and to all observers alike; there is no file to send.

If the folder that the submitter made for the run is visible here, the storage is shared and the run is kept in it. The
path alone does not show that, since another machine may have the same one: the folder has to hold this run's token.
Otherwise the run is kept in the home folder of this node, and observers get it through the feed.
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
from launcher.planning.known_machines import decompressed
from launcher.record.run_dir import RunDir
from launcher.record.run_state import EXIT_STATUS
from launcher.remote.feed import FedRunDir, Feed, FeedView
from launcher.remote.ray_jobs import METADATA, force_requested
from launcher.run.context import RunContext
from launcher.run.run import run


def main() -> int:
    """Carry out the run described by the job's metadata.

    Returns:
        The exit status, from which Ray takes whether the job succeeded.

    Raises:
        ClusterError: the submitter has another version; then not even the metadata can be relied upon.
    """
    metadata = json.loads(json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"][METADATA])
    if metadata["version"] != __version__:
        raise ClusterError(
            f"the submitter has narrowgauge {metadata['version']}, this node has {__version__}; install the same "
            "version in the environment that Ray runs in, on every node"
        )
    job = Job.model_validate(metadata["job"])
    # Workers' output must not come between the lines: it goes to their logs, and from there through the view.
    feed = Feed(sys.stdout)
    run_dir = FedRunDir.fed(folder(metadata, job), feed)
    view = FeedView(run_dir, feed, sys.stdout)
    # "auto": the driver is inside of the cluster, whose address from outside may lead through a tunnel.
    on_cluster = job.model_copy(update={"cluster": job.cluster.model_copy(update={"address": "auto"})})
    # The same name on both sides, since it is also the id of Ray's job.
    name = f"{job.name}-{metadata['id']}"
    resumed = earlier(metadata["resumed"]) if metadata["resumed"] else None
    context = RunContext(
        run_dir,
        metadata["submitted_at"],
        cwd=None,
        force_requested=functools.partial(force_requested, name),
        resumed=resumed,
        remembered=decompressed(metadata["remembered"]),
    )
    summary = run(on_cluster, view, follow_logs=True, context=context)
    return EXIT_STATUS[summary["status"]]


def folder(metadata: dict[str, Any], job: Job, home: Path | None = None) -> RunDir:
    """The run's folder: the submitter's if it is visible here, else a new one in the home folder."""
    theirs = RunDir(Path(metadata["folder"]), job.name, metadata["id"])
    try:
        if json.loads(theirs.cluster.read_text(encoding="utf-8"))["token"] == metadata["token"]:
            return theirs
    except (OSError, ValueError, KeyError):
        pass  # not there, or the folder of another run
    ours = RunDir((home or Path.home()) / "narrowgauge" / f"{job.name}-{metadata['id']}", job.name, metadata["id"])
    ours.make(job)
    return ours


def earlier(folder: str, home: Path | None = None) -> Path:
    """The folder of the run to resume: the submitter's path, or this node's home folder, where a driver keeps runs
    without shared storage. The submitter's path if it is in neither place; rank 0 then fails with that name."""
    theirs, ours = Path(folder), (home or Path.home()) / "narrowgauge" / Path(folder).name
    return ours if (ours / "checkpoints").is_dir() and not any((theirs / "checkpoints").glob("step-*")) else theirs


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LauncherError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
