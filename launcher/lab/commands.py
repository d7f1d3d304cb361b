"""`launcher lab ...`: farms on one machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher.bootstrap import command
from launcher.config import job_file
from launcher.errors import LabError
from launcher.lab import life, network, ranks, ray_nodes, record, signals
from launcher.lab.record import LabRecord
from launcher.lab.warden import Warden

app = typer.Typer(
    help="A farm on one machine: a network namespace for each host, links shaped to the rates of a file. Needs root.",
    no_args_is_help=True,
)

LabPath = Annotated[Path, typer.Argument(metavar="FILE", help="The lab file, such as configs/lab/four-equal.yaml.")]


@app.command()
def up(
    file: LabPath,
    ray: Annotated[bool, typer.Option("--ray", help="Also start a Ray node in each host.")] = False,
) -> None:
    """Bring a lab up; it stays until `down`."""
    lab = job_file.load_lab(file)
    with signals.exit_on_signals():
        made = life.up(lab, str(file.resolve()), ray=ray)
    for line in _status_lines(made):
        print(line)


@app.command()
def run(
    file: LabPath,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run, with its arguments.")],
    known_links: Annotated[
        bool,
        typer.Option("--known-links", help="Give the collectives the rates of the file, so that they do not measure."),
    ] = False,
) -> None:
    """Run a command in every rank of a lab, or `launcher ...` once, with a Ray node in every host.

    Unless the lab is up already, it is brought up before and taken down after.
    """
    lab = job_file.load_lab(file)
    if known_links and command[0] == "launcher":
        raise LabError(
            "--known-links applies to commands that run in every rank; for `launcher submit`, write the topology with "
            "`launcher lab topology FILE` and name it in the job file"
        )
    source = str(file.resolve())
    with signals.exit_on_signals(), Warden() as warden, life.brought_up(lab, source, warden.guard_lab) as there:
        if command[0] == "launcher":
            status = _run_launcher(there, command[1:], warden)
        else:
            status = ranks.run(there, command, warden, known_links=known_links)
    raise typer.Exit(status)


@app.command()
def status() -> None:
    """Show the labs that are up: hosts, addresses, current rates, Ray nodes."""
    found = [each for each in map(LabRecord.load, record.names()) if each is not None]
    for each in found:
        try:
            print("\n".join(_status_lines(each)))
        except LabError as error:
            print(f"lab {each.lab.name} is on its way up or down, or was cut off there ({error})")
    if not found:
        print("no lab is up")


@app.command()
def down(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The lab; the only one if left out.")] = None,
) -> None:
    """End whatever runs in a lab and remove it."""
    names = record.names()
    if name is None and len(names) > 1:
        raise LabError(f"{len(names)} labs are up: name one of {', '.join(names)}")
    target = name or next(iter(names), None)
    with signals.signals_ignored():
        was_up = target is not None and life.down(target)
    print(f"lab {target} is down" if was_up else f"lab {name} was not up" if name else "no lab was up")


@app.command()
def link(
    name: Annotated[str, typer.Argument(metavar="HOST", help="A host of the lab, or a site.")],
    mbit: Annotated[float | None, typer.Option("--mbit", help="New rate in Mbit/s.", min=0.1, max=40_000)] = None,
    only_up: Annotated[bool, typer.Option("--up", help="Only the direction to the network.")] = False,
    only_down: Annotated[bool, typer.Option("--down", help="Only the direction from the network.")] = False,
    cut: Annotated[bool, typer.Option("--cut", help="Disconnect the link.")] = False,
    restore: Annotated[bool, typer.Option("--restore", help="Reconnect the link, with the rates of the file.")] = False,
    lab: Annotated[str | None, typer.Option("--lab", metavar="NAME", help="The lab; needed if several are up.")] = None,
) -> None:
    """Change, cut or restore a link while commands run."""
    if [mbit is not None, cut, restore].count(True) != 1 or ((only_up or only_down) and mbit is None):
        raise LabError("a link takes one of --mbit RATE (with --up or --down for one direction), --cut and --restore")
    there = life.find(lab)
    cable = _cable(there, name)
    if cut:
        network.cut(cable)
    if restore:  # rates first, so that the link never runs with changed ones
        network.shape(cable.up, cable.up_mbit, cable.buffers)
        network.shape(cable.down, cable.down_mbit, cable.buffers)
        network.restore(cable)
    if mbit is not None and not only_down:
        network.shape(cable.up, mbit, cable.buffers)
    if mbit is not None and not only_up:
        network.shape(cable.down, mbit, cable.buffers)
    print(f"{name}: {_rates(cable)}")


@app.command()
def topology(file: LabPath) -> None:
    """Print the topology of a lab file: ranks, and rates in bytes of payload per second. Needs no root."""
    print(job_file.load_lab(file).topology().to_json(), end="")


def _run_launcher(there: LabRecord, arguments: list[str], warden: Warden) -> int:
    """`launcher ARGUMENTS` in the first host, with the lab's Ray cluster up."""
    reach = ray_nodes.address(there.lab)
    with ray_nodes.running(there, warden.guard_group):
        print(f"lab: Ray is at {reach}; cluster.address=auto finds it", file=sys.stderr, flush=True)
        return ranks.run_once(there, command("launcher.cli", *arguments), warden, ray_nodes.environment(there))


def _cable(there: LabRecord, name: str) -> network.Cable:
    cables = network.cables(there.lab)
    if name not in cables:
        raise LabError(f"lab {there.lab.name!r} has no host or site {name!r}; it has {', '.join(cables)}")
    return cables[name]


def _status_lines(each: LabRecord) -> list[str]:
    lab, cables = each.lab, network.cables(each.lab)
    lines = [f"lab {lab.name} ({each.source})"]
    for index, host in enumerate(lab.hosts):
        numbers = lab.ranks_of(index)
        which = f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {numbers[0]} to {numbers[-1]}"
        node = each.ray.get(host.name)
        ray = f"  Ray pid {node.pid}" + ("" if node.lives else " (ended)") if node else ""
        lines.append(f"  {host.name:24}  {lab.address(index)}  {which:14}  {_rates(cables[host.name])}{ray}")
    lines += [f"  site {site.name:19}  {', '.join(site.hosts)}  {_rates(cables[site.name])}" for site in lab.sites]
    if each.ray:
        lines.append(f"  Ray: {ray_nodes.address(lab)}, from inside the lab")
    return lines


def _rates(cable: network.Cable) -> str:
    state = "CUT, " if network.is_cut(cable) else ""
    return f"{state}up {network.rate_now(cable.up):g} down {network.rate_now(cable.down):g} Mbit/s"
