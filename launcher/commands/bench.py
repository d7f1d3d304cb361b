"""`launcher bench`: the bench of `collectives` as the job of a job file's workers, cluster and collectives.

The job's own entrypoint is replaced by `work`, which measures as one rank; rank 0 sends the report to the launcher with
`progress.note`, which reaches it from any node.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import collectives
from collectives.bench import command, limit
from collectives.bench.report import Report
from launcher import progress
from launcher.config.job import Job
from launcher.monitor.terminal import open_view, print_summary
from launcher.submit import run_job

NOTE = "bench"
MAX_NAME_LENGTH = 58  # with "-bench" it is still a valid job name


def bench(job: Job, words: Sequence[str]) -> dict[str, Any]:
    """Run the bench on a job's workers, show its table (or JSON) on stdout, and write the files asked for.

    Args:
        words: options of `python -m collectives bench`.

    Returns:
        The run's summary.

    Raises:
        SystemExit: unknown options.
        NarrowgaugeError, OSError: invalid values of options, or a file that cannot be read.
        ClusterError: from `run`.
    """
    options = _parsed(words, "launcher bench CONFIG")
    settings = command.settings_of(options)
    limit.given(options.limit, {}, job.workers.count)  # report an error in the file before Ray starts
    out = sys.stderr if settings.json else sys.stdout
    summary = _run(_as_job(job, options), out)
    if summary["status"] != "finished":
        print_summary({**summary, "notes": {}}, out)
        return summary
    report = Report.from_dict(summary["notes"][NOTE])
    print(f"folder {summary['folder']}\n", file=out)
    print(report.to_json() if settings.json else report.table())
    command.keep(report, settings)
    return summary


def work() -> None:
    """What each worker runs."""
    collectives.uninstall()  # the bench compares with torch's own Gloo
    settings = command.settings_of(_parsed(sys.argv[1:], "launcher.commands.bench:work"))
    report = command.measure(settings, lambda text: print(text, flush=True))
    if int(os.environ["RANK"]) == 0:
        progress.note(**{NOTE: report.to_dict()})


def _parsed(words: Sequence[str], program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program, description="Time collectives on the workers of a job file.")
    command.add_options(parser)
    return parser.parse_args(words)


def _as_job(job: Job, options: argparse.Namespace) -> Job:
    """The job with the bench as its entrypoint. Options that write files are left out: the launcher writes them
    here."""
    args = [
        "--collective",
        options.collective,
        "--sizes",
        options.sizes,
        "--dtype",
        options.dtype,
        "--codec",
        options.codec,
    ]
    args += ["--round-s", str(options.round_s)]
    args += ["--no-gloo"] if options.no_gloo else []
    args += ["--limit", str(Path(options.limit).resolve())] if options.limit else []
    changes = {"name": f"{job.name[:MAX_NAME_LENGTH]}-bench", "entrypoint": f"{__name__}:work", "args": args}
    return job.model_copy(update=changes)


def _run(job: Job, out: TextIO) -> dict[str, Any]:
    view = open_view(out)
    try:
        return run_job(job, view)
    finally:
        view.close()
