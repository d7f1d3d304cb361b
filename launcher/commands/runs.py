"""`launcher list | status | logs | stop | top`: observe and stop runs on this machine or on a cluster."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.errors import ClusterError, RunError
from launcher.record import catalog
from launcher.record.catalog import Known

if TYPE_CHECKING:
    from launcher.remote.open_run import OpenRun
    from launcher.remote.ray_jobs import Jobs

STOP_TIMEOUT_S = 30.0
FORCE_GAP_S = 0.1
"""Between the two SIGTERMs that mean force. Signals of one kind that arrive together are merged into one by the kernel;
after much longer the first one has ended the run."""
TOP_REFRESH_S = 1.0

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="The run's name, the beginning of its name, or its folder.")
]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", envvar="RAY_ADDRESS", help="Also look for runs on this cluster."),
]
Runs = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="The folder of this machine's runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HERE = Path("runs")


def add_to(app: typer.Typer) -> None:
    """Add the commands to the launcher."""
    app.command("list")(list_runs)
    for command in (status, logs, stop, top):
        app.command()(command)


def list_runs(address: Address = None, folder: Runs = HERE, as_json: AsJson = False) -> None:
    """List the runs in this machine's folder of runs and on a cluster."""
    from launcher.monitor.columns import format_list
    from launcher.remote.open_run import rows

    found, unreachable = rows(catalog.local_runs(folder), address)
    if as_json:
        print(json.dumps([vars(row) for row in found], indent=2))
    else:
        print("\n".join(format_list(found)) if found else f"no runs in {folder.resolve()}")
    if unreachable:
        raise ClusterError("; ".join(unreachable))


def status(run: RunName, address: Address = None, folder: Runs = HERE, as_json: AsJson = False) -> None:
    """Show a run: state, ranks, their hosts, addresses and interfaces, and the failure."""
    from launcher.monitor.columns import format_status
    from launcher.record.replay import Reader

    with _open(run, address, folder) as observed:
        observed.catch_up()
        reader = Reader(observed.folder)
        reader.new_lines()
        found = observed.status(reader)
    print(json.dumps(found, indent=2) if as_json else "\n".join(format_status(found, reader.replay)))


def logs(
    run: RunName,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing until the run is over.")] = False,
    rank: Annotated[int | None, typer.Option("--rank", metavar="N", min=0, help="Only this rank.")] = None,
    address: Address = None,
    folder: Runs = HERE,
) -> None:
    """Print the output of a run's workers; with --rank, one rank's log unchanged."""
    from launcher.record.replay import Reader
    from launcher.record.tail import LogTails

    with _open(run, address, folder) as observed:
        observed.follow() if follow else observed.catch_up()
        reader = Reader(observed.folder)
        count = reader.replay.world_size
        if rank is not None and rank >= count:
            raise RunError(f"no rank {rank} in {observed.known.name}; it has {count}, from 0 to {count - 1}")
        tails = LogTails(reader.dir, range(count) if rank is None else [rank])
        while True:
            over = not follow or observed.over  # asked first: lines written before the end are still printed
            for which, line in tails.new_lines(rest=over):
                print(line if rank is not None else f"[rank {which}] {line}", flush=True)
            if over:
                break
            observed.advance(0.25)


def stop(
    run: RunName,
    force: Annotated[bool, typer.Option("--force", help="Kill the workers at once.")] = False,
    address: Address = None,
    folder: Runs = HERE,
) -> None:
    """Stop a run and wait until it has ended."""
    with _open(run, address, folder) as observed:
        known, state = observed.known, observed.state()
        if state in catalog.OVER:
            raise RunError(f"{known.name} is over: {state}")
        if observed.jobs is not None:
            observed.jobs.stop(known.name, force=force)
        else:
            _stop_here(observed.folder, force)
        print(f"{known.name}: {observed.state()}")


def top(run: RunName, address: Address = None, folder: Runs = HERE) -> None:
    """Watch where each rank's time goes: batch share, compute, wait, and the rank waited for. In a pipe it prints
    once."""
    from rich.live import Live
    from rich.text import Text

    from launcher.monitor.columns import format_top
    from launcher.record.replay import Reader

    with _open(run, address, folder) as observed:
        watching = sys.stdout.isatty() and observed.state() not in catalog.OVER
        observed.follow() if watching else observed.catch_up()
        reader = Reader(observed.folder)

        def snapshot() -> str:
            reader.new_lines()
            return "\n".join(format_top(observed.known.name, observed.state(), reader.seats(), reader.replay))

        if not watching:
            print(snapshot())
            return
        with Live(Text(snapshot()), auto_refresh=False) as live:
            while not observed.over:
                observed.advance(TOP_REFRESH_S)
                live.update(Text(snapshot()), refresh=True)
            live.update(Text(snapshot()), refresh=True)


def _open(word: str, address: str | None, folder: Path) -> AbstractContextManager[OpenRun]:
    """The run that a word of the user's names: a folder, or a name among the runs of this machine and of a cluster.

    Raises:
        RunError: it names none, or several.
        ClusterError: the cluster cannot be reached.
    """
    from launcher.remote.open_run import OpenRun

    path = Path(word)
    if (path / "config.yaml").is_file():
        return OpenRun(catalog.from_folder(path.resolve()))
    known = {run.name: run for run in catalog.local_runs(folder)}
    jobs: Jobs | None = None
    if address is not None:
        from launcher.remote.ray_jobs import Jobs

        jobs = Jobs(address)
        for found in jobs.all():
            known.setdefault(found.id, Known(found.id, None, address, written_here=False))
    where = f"in {folder.resolve()}" + (f" or on the cluster at {address!r}" if address else "")
    return OpenRun(catalog.resolve_name(word, list(known.values()), where), jobs)


def _stop_here(folder: Path, force: bool) -> None:
    """Have the launcher process that carries out a run on this machine stop it, and wait for its end.

    That process and not the workers gets the signal: it stops them in order, and writes the summary.

    Raises:
        RunError: it runs on another machine.
        ClusterError: it does not end.
    """
    owner: dict[str, Any] | None = catalog.read(folder / "launcher.json")
    if owner is None or owner["host"] != socket.gethostname():
        raise RunError(
            f"{folder.name} is not carried out on this machine, {socket.gethostname()}, but on "
            f"{owner['host'] if owner else 'an unknown one'}; stop it there"
        )
    process = catalog.process_of(owner)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for _ in range(2 if force else 1):
        if process is not None:
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(FORCE_GAP_S)
    while catalog.process_of(owner) is not None:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"process {owner['pid']}, the launcher of {folder.name}, is still running {STOP_TIMEOUT_S:.0f} s "
                "after it was asked to stop"
            )
        time.sleep(0.1)
