"""The `launcher` command.

Exit status: 0 success, 1 the run or a check failed, 2 the user's input is wrong, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

try:
    import typer

    from collectives import NarrowgaugeError, __version__
    from launcher.checkpoint.resume import find as find_run
    from launcher.commands import machines, runs
    from launcher.commands.broken_pipe import ignore_broken_pipe
    from launcher.config import job_file
    from launcher.config.job import Job
    from launcher.errors import ConfigError, LauncherError, PackingError, ReportError, RunError
    from launcher.lab.commands import app as lab
    from launcher.record.run_state import EXIT_STATUS
except KeyboardInterrupt:  # a Ctrl-C before there is anything to stop
    sys.exit(130)

app = typer.Typer(
    help="Train over narrow links: start, watch and stop jobs on whatever machines there are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(lab, name="lab")
machines.add_to(app)
runs.add_to(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"narrowgauge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def submit(
    file: machines.JobPath,
    overrides: machines.Overrides = [],  # noqa: B006 - typer copies it
    logs: Annotated[bool, typer.Option("--logs", help="Show the workers' output as it appears.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the summary on stdout, as JSON.")] = False,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Continue from the newest checkpoint of this run: its folder or its name."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Submit to the cluster and return; print only the run's name on stdout.")
    ] = False,
) -> None:
    """Run a job and wait for its end.

    On a cluster, Ctrl-C stops the run, a second Ctrl-C detaches from it, and it continues if the terminal is closed.
    """
    job = job_file.load(file, overrides)
    resumed = find_run(resume, job) if resume is not None else None
    from launcher.monitor.terminal import open_view, print_summary
    from launcher.submit import detach as submit_only
    from launcher.submit import run_job  # after the check: an error in the file is reported without Ray's import

    if detach:
        submit_only(job, resumed)
        return
    progress = sys.stderr if as_json else sys.stdout
    view = open_view(progress)
    try:
        summary = run_job(job, view, follow_logs=logs, resumed=resumed)
    finally:
        view.close()
    print_summary(summary, progress)
    if as_json:
        print(json.dumps(summary, indent=2))
    raise typer.Exit(EXIT_STATUS[summary["status"]])


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    words: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="CONFIG", help="The job file whose workers measure.")],
    overrides: machines.Overrides = [],  # noqa: B006 - typer copies it
) -> None:
    """Time collectives on a job's workers, narrowgauge and Gloo in turn; options of `python -m collectives bench`."""
    job = job_file.load(file, overrides)
    from launcher.commands.bench import bench as run_bench

    with _exit_2_on("launcher bench", NarrowgaugeError, OSError):
        summary = run_bench(job, words.args)
    raise typer.Exit(EXIT_STATUS[summary["status"]])


@app.command()
def probe(
    file: Annotated[Path, typer.Argument(metavar="CONFIG", help="The job file whose hosts are measured.")],
    overrides: machines.Overrides = [],  # noqa: B006 - typer copies it
    as_json: Annotated[bool, typer.Option("--json", help="Print only the topology on stdout, as JSON.")] = False,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Write the topology, for a job's collectives.topology."),
    ] = None,
) -> None:
    """Measure the links between a job's hosts: up, down, latency, memory, slow pairs and shared uplinks."""
    job = job_file.load(file, overrides)
    from launcher.commands.probe import probe as run_probe

    with _exit_2_on("launcher probe", NarrowgaugeError, OSError):
        summary = run_probe(job, save, as_json)
    raise typer.Exit(EXIT_STATUS[summary["status"]])


@app.command()
def report(
    folder: Annotated[
        Path | None, typer.Argument(metavar="RUN_FOLDER", help="A run's folder, such as runs/x-...")
    ] = None,
    grafana: Annotated[bool, typer.Option("--grafana", help="Print a Grafana dashboard for all runs instead.")] = False,
) -> None:
    """Write report.html, a page about a run, into its folder: during the run, after its end, or after a crash."""
    from launcher import report as page

    if grafana == (folder is not None):
        print("launcher report: give either a run's folder or --grafana; see `launcher report --help`", file=sys.stderr)
        raise typer.Exit(2)
    with _exit_2_on("launcher report", ReportError, OSError):
        print(page.grafana() if folder is None else page.write(folder))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check this machine: versions, network, shared memory, the engine, and an all-reduce of two processes."""
    from launcher.commands.doctor import examine, format_check

    checks = []
    for check in examine():
        checks.append(check)
        if not as_json:
            print(format_check(check), flush=True)
    if as_json:
        print(json.dumps([vars(check) for check in checks], indent=2))
    raise typer.Exit(1 if any(check.state == "wrong" for check in checks) else 0)


@app.command()
def schema() -> None:
    """Print the JSON schema of the job file, for editors."""
    print(json.dumps(Job.model_json_schema(), indent=2))


@contextmanager
def _exit_2_on(command: str, *kinds: type[Exception]) -> Iterator[None]:
    """Print these exceptions as one line and exit with status 2: here they mean wrong options or files of the user's,
    while elsewhere the same classes may be a failure."""
    try:
        yield
    except kinds as error:
        print(f"{command}: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def main() -> None:
    """The console command. Errors of the user end with one message and status 2, never with a traceback."""
    sys.stdout, sys.stderr = ignore_broken_pipe(sys.stdout), ignore_broken_pipe(sys.stderr)
    try:
        app(prog_name="launcher")
    except KeyboardInterrupt:
        sys.exit(EXIT_STATUS["stopped"])
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except (PackingError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except LauncherError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
