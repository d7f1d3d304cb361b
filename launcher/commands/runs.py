"""`launcher list | status | logs | stop | top`: runs that are there already, on this machine or on a cluster."""

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
    from launcher.remote.open_run import Opened
    from launcher.remote.ray_jobs import Jobs

STOP_TIMEOUT_S = 30.0
FORCE_GAP_S = 0.1
"""Between the two signals that mean force: apart enough to count as two, and before the first has ended the run."""
TOP_REFRESH_S = 1.0

RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of the run, or its beginning, or its folder.")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", envvar="RAY_ADDRESS", help="The cluster that runs are on, too."),
]
Runs = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Where this machine's runs are.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
HERE = Path("runs")


def add_to(app: typer.Typer) -> None:
    """The commands as commands of the launcher."""
    app.command("list")(list_runs)
    for command in (status, logs, stop, top):
        app.command()(command)


def list_runs(address: Address = None, folder: Runs = HERE, as_json: AsJson = False) -> None:
    """List the runs of this machine's folder of runs, and of a cluster."""
    from launcher.monitor.columns import listed
    from launcher.remote.open_run import rows

    found, unreachable = rows(catalog.here(folder), address)
    if as_json:
        print(json.dumps([vars(row) for row in found], indent=2))
    else:
        print("\n".join(listed(found)) if found else f"no runs in {folder.resolve()}")
    if unreachable:
        raise ClusterError("; ".join(unreachable))


def status(run: RunName, address: Address = None, folder: Runs = HERE, as_json: AsJson = False) -> None:
    """Show a run: its state, its ranks, their hosts, addresses and interfaces, and what failed."""
    from launcher.monitor.columns import status_lines
    from launcher.record.replay import Reader

    with _opened(run, address, folder) as opened:
        opened.catch_up()
        reader = Reader(opened.folder)
        reader.new_lines()
        told = opened.told(reader)
    print(json.dumps(told, indent=2) if as_json else "\n".join(status_lines(told, reader.replay)))


def logs(
    run: RunName,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run is over.")] = False,
    rank: Annotated[int | None, typer.Option("--rank", metavar="N", min=0, help="Only this rank's.")] = None,
    address: Address = None,
    folder: Runs = HERE,
) -> None:
    """Show what the workers of a run printed; with --rank one rank's log as it is."""
    from launcher.record.replay import Reader
    from launcher.record.tail import LogTails

    with _opened(run, address, folder) as opened:
        opened.follow() if follow else opened.catch_up()
        reader = Reader(opened.folder)
        count = reader.replay.world_size
        if rank is not None and rank >= count:
            raise RunError(f"no rank {rank} in {opened.known.name}; it has {count}, from 0 to {count - 1}")
        tails = LogTails(reader.dir, range(count) if rank is None else [rank])
        while True:
            over = not follow or opened.over
            for which, line in tails.new_lines(rest=over):
                print(line if rank is not None else f"[rank {which}] {line}", flush=True)
            if over:
                break
            opened.advance(0.25)


def stop(
    run: RunName,
    force: Annotated[bool, typer.Option("--force", help="Kill the workers at once.")] = False,
    address: Address = None,
    folder: Runs = HERE,
) -> None:
    """Stop a run, and wait until it has ended."""
    with _opened(run, address, folder) as opened:
        known, state = opened.known, opened.state()
        if state in catalog.OVER:
            raise RunError(f"{known.name} is over: {state}")
        if opened.jobs is not None:
            opened.jobs.stop(known.name, force=force)
        else:
            _stop_here(opened.folder, force)
        print(f"{known.name}: {opened.state()}")


def top(run: RunName, address: Address = None, folder: Runs = HERE) -> None:
    """Watch where each rank's time goes: its share, computing, waiting and for whom. In a pipe it tells once."""
    from rich.live import Live
    from rich.text import Text

    from launcher.monitor.columns import top_lines
    from launcher.record.replay import Reader

    with _opened(run, address, folder) as opened:
        watching = sys.stdout.isatty() and opened.state() not in catalog.OVER
        opened.follow() if watching else opened.catch_up()
        reader = Reader(opened.folder)

        def shown() -> str:
            reader.new_lines()
            return "\n".join(top_lines(opened.known.name, opened.state(), reader.seats(), reader.replay))

        if not watching:
            print(shown())
            return
        with Live(Text(shown()), auto_refresh=False) as live:
            while not opened.over:
                opened.advance(TOP_REFRESH_S)
                live.update(Text(shown()), refresh=True)
            live.update(Text(shown()), refresh=True)


def _opened(word: str, address: str | None, folder: Path) -> AbstractContextManager[Opened]:
    """The run that the user means."""
    from launcher.remote.open_run import Opened

    path = Path(word)
    if (path / "config.yaml").is_file():
        return Opened(catalog.of_folder(path.resolve()))
    known = {run.name: run for run in catalog.here(folder)}
    jobs: Jobs | None = None
    if address is not None:
        from launcher.remote.ray_jobs import Jobs

        jobs = Jobs(address)
        for found in jobs.all():
            known.setdefault(found.id, Known(found.id, None, address, written_here=False))
    where = f"in {folder.resolve()}" + (f" or on the cluster at {address!r}" if address else "")
    return Opened(catalog.the_one(word, list(known.values()), where), jobs)


def _stop_here(folder: Path, force: bool) -> None:
    """Tell the launcher that carries out a run on this machine to stop it, and wait until it has.

    Raises:
        RunError: it runs on another machine.
        ClusterError: it doesn't end.
    """
    owner: dict[str, Any] | None = catalog.read(folder / "launcher.json")
    if owner is None or owner["host"] != socket.gethostname():
        raise RunError(
            f"{folder.name} is not carried out on this machine, {socket.gethostname()}, but on "
            f"{owner['host'] if owner else 'one that is not known yet'}; stop it there"
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
                f"process {owner['pid']}, the launcher of {folder.name}, still runs {STOP_TIMEOUT_S:.0f} s after it "
                "was told to stop"
            )
        time.sleep(0.1)
