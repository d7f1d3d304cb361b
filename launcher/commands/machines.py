"""`launcher inventory`, `launcher plan`, `launcher init`: the machines, the placement of a job, a job file to edit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from collectives.errors import NarrowgaugeError
from launcher.config import job_file
from launcher.config.job import Job, Workers
from launcher.errors import ConfigError, SourcePosition

JobPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The job file, such as configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the job file, such as workers.count=2.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Only the result on stdout, as JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the launcher."""
    for command in (plan, inventory, init):
        app.command()(command)


def plan(
    file: JobPath,
    inventory: Annotated[
        Path | None,
        typer.Option("--inventory", metavar="FILE", help="Plan for these machines instead of the available ones."),
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    as_json: AsJson = False,
) -> None:
    """Show where the ranks would run and how fast, and what would make the job faster. Starts nothing."""
    job = job_file.load(file, overrides, elsewhere=inventory is not None)
    from launcher.planning import describe
    from launcher.planning.plan import make
    from launcher.record.past_speeds import Earlier, earlier
    from launcher.run.survey import gather

    if inventory is not None:  # runs on this machine say nothing about those in the file
        farm, before = job_file.load_inventory(inventory), Earlier()
    else:
        farm, before = gather(job), earlier(job)
    try:
        made = make(job, farm, before, own=inventory is None and job.cluster.address is None)
    except NarrowgaugeError as error:
        print(f"launcher plan: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    print(json.dumps(made.to_json(), indent=2) if as_json else describe.as_text(made))


def inventory(
    file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="A job file, for its cluster and the CPUs of a worker.")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST:PORT", help='The Ray cluster to measure, or "auto".')
    ] = None,
    links: Annotated[
        Path | None, typer.Option("--links", metavar="FILE", help="Add the links that `launcher probe --save` wrote.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Write the inventory for `launcher plan`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the available machines: accelerators, memory, network interfaces, speeds."""
    from launcher.inventory.describe import as_text
    from launcher.run.survey import gather

    if save is not None and not save.absolute().parent.is_dir():
        raise ConfigError(SourcePosition(f"--save {save}"), f"no folder {save.parent}", next_step="create it first")
    found = gather(_job_for(file, address))
    if links is not None:
        found = job_file.with_links(found, links)
    if save is not None:
        save.write_text(found.to_json(), encoding="utf-8")
    print(found.to_json() if as_json else as_text(found), end="" if as_json else "\n")


def _job_for(file: Path | None, address: str | None) -> Job:
    """The job whose cluster is measured; without a file, one that only names the cluster."""
    overrides = [] if address is None else [f"cluster.address={address}"]
    if file is not None:
        return job_file.load(file, overrides)
    return job_file.with_overrides(
        Job(name="inventory", entrypoint="launcher.inventory.measure", workers=Workers(count=1)), overrides
    )


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The job file to write.")] = Path("job.yaml"),
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST:PORT", help='The Ray cluster to write it for, or "auto".')
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented job file for the available machines, as a start."""
    if file.exists() and not force:
        raise ConfigError(SourcePosition(str(file)), "the file exists", next_step="choose another name, or add --force")
    if not file.absolute().parent.is_dir():
        raise ConfigError(SourcePosition(str(file)), f"no folder {file.parent}", next_step="create it first")
    from launcher.commands.init import starter
    from launcher.run.survey import gather

    file.write_text(starter(gather(_job_for(None, address), measure=False), address, str(file)), encoding="utf-8")
    print(f"wrote {file}; next: edit entrypoint, then launcher plan {file}, then launcher submit {file}")
