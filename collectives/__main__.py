"""`python -m collectives explain`: print the plan for a topology, without torch and without peers.

`torchrun ... -m collectives bench`: time a collective, ours and Gloo in turn; see `collectives.bench`.

`torchrun ... -m collectives probe`: measure the links between hosts; see `collectives.probe`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from collectives.bench import command as bench
from collectives.errors import CollectiveError, NarrowgaugeError, PlanError, RendezvousError, UsageError
from collectives.planning.plan import Plan
from collectives.planning.planner import plan
from collectives.planning.simulate import explain_simulation, simulate
from collectives.probe import command as probe
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.topology import Topology
from collectives.units import num_bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 if the ranks failed, 2 for an error in arguments or topology."""
    options = _parser().parse_args(arguments)
    try:
        print(_COMMANDS[options.command](options), end="")
    except (NarrowgaugeError, OSError) as error:
        print(f"python -m collectives {options.command}: {error}", file=sys.stderr)
        return 1 if isinstance(error, (CollectiveError, RendezvousError)) else 2
    return 0


def _bench(options: argparse.Namespace) -> str:
    bench.main(options)  # prints each line when it is known
    return ""


def _line(text: str) -> str:
    return text + "\n" if text else ""


def _explain(options: argparse.Namespace) -> str:
    chosen = _read_plan(options.plan) if options.plan is not None else _make_plan(options)
    if options.text:
        return chosen.to_text()
    if options.json:
        return _line(json.dumps(chosen.summary(), indent=2))
    parts = [chosen.explain()]
    if options.simulate:
        parts.append(explain_simulation(chosen, simulate(chosen.topology, chosen.forest, chosen.num_bytes)))
    if options.trees:
        parts.append(str(chosen.forest))
    return _line("\n\n".join(parts))


def _read_plan(path: str) -> Plan:
    try:
        return Plan.parse(Path(path).read_text(encoding="utf-8"))
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None


def _make_plan(options: argparse.Namespace) -> Plan:
    topology = _topology(options)
    collective: Collective = options.collective
    specification = SPECIFICATIONS[collective]
    if options.root is not None and not specification.rooted:
        raise UsageError(f"--root {options.root}: {collective} has no root")
    root = specification.default_root if options.root is None else options.root
    return plan(topology, collective, num_bytes(options.bytes), root)


def _probe(options: argparse.Namespace) -> str:
    return probe.main(options)


_COMMANDS = {"explain": _explain, "bench": _bench, "probe": _probe}


def _topology(options: argparse.Namespace) -> Topology:
    if options.topology is not None:
        return Topology.load(options.topology)
    if options.hosts < 1 or options.ranks_per_host < 1:
        raise UsageError(
            f"--hosts {options.hosts} --ranks-per-host {options.ranks_per_host}: wanted at least 1 of each"
        )
    names = (f"host{index}" for index in range(options.hosts))
    return Topology.from_hosts([name for name in names for _ in range(options.ranks_per_host)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m collectives", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("explain", help="print the plan for a topology: forest, seconds, bound, bottleneck")
    hosts = command.add_mutually_exclusive_group(required=True)
    hosts.add_argument("topology", nargs="?", help="a topology JSON file")
    hosts.add_argument("--hosts", type=int, help="instead of a file: this many hosts with equal default links")
    hosts.add_argument("--plan", help="explain the plan in this file, as --text prints it, instead of making one")
    command.add_argument("--ranks-per-host", type=int, default=1, help="with --hosts (default 1)")
    command.add_argument("--collective", choices=list(SPECIFICATIONS), default="all_reduce")
    command.add_argument("--bytes", default="25M", help="message size (default 25M): 4096, 4k, 25M, 64Mi")
    command.add_argument("--root", type=int, help="for broadcast and reduce (default 0)")
    command.add_argument("--trees", action="store_true", help="print the whole forest, too, so that it reads back")
    command.add_argument("--simulate", action="store_true", help="run the plan on an event clock, too")
    command.add_argument("--json", action="store_true", help="print the summary as JSON instead")
    command.add_argument("--text", action="store_true", help="print the whole plan instead, as --plan reads it")
    command = commands.add_parser("bench", help="time a collective on this group of ranks, ours and Gloo in turn")
    bench.add_options(command)
    command = commands.add_parser("probe", help="measure the links between the hosts of this group of ranks")
    probe.add_options(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
