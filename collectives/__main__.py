"""`python -m collectives explain`: what a plan would look like, without torch and without peers.

`torchrun ... -m collectives bench`: what a collective takes, ours and Gloo in turn; see `collectives.bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from collectives.engine.op import Collective
from collectives.errors import NarrowgaugeError, UsageError
from collectives.planner import plan
from collectives.specification import SPECIFICATIONS
from collectives.topology import Topology

DEFAULT_SIZES = "8,4k,64k,1M,25M"
SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 for a mistake in the arguments or the topology."""
    options = _parser().parse_args(arguments)
    try:
        print(_COMMANDS[options.command](options), end="")
    except (NarrowgaugeError, OSError) as error:
        print(f"python -m collectives {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _bench(options: argparse.Namespace) -> str:
    sizes = [num_bytes(text) for text in options.sizes.split(",")]
    if "RANK" not in os.environ:
        raise UsageError("bench runs on several ranks; start it as: torchrun --nproc-per-node 4 -m collectives bench")
    from collectives import bench

    return _line(bench.main(options, sizes))


def _line(text: str) -> str:
    return text + "\n" if text else ""


def _explain(options: argparse.Namespace) -> str:
    topology = _topology(options)
    collective: Collective = options.collective
    rooted = SPECIFICATIONS[collective].rooted
    if options.root is not None and not rooted:
        raise UsageError(f"--root {options.root}: {collective} has no root")
    root = (options.root or 0) if rooted else None
    chosen = plan(topology, collective, num_bytes(options.bytes), root)
    if options.json:
        return _line(json.dumps(chosen.summary(), indent=2))
    return _line(chosen.explain() + (f"\n\n{chosen.forest}" if options.trees else ""))


_COMMANDS = {"explain": _explain, "bench": _bench}


def _topology(options: argparse.Namespace) -> Topology:
    if options.topology is not None:
        return Topology.load(options.topology)
    if options.hosts < 1 or options.ranks_per_host < 1:
        raise UsageError(
            f"--hosts {options.hosts} --ranks-per-host {options.ranks_per_host}: wanted at least 1 of each"
        )
    names = (f"host{index}" for index in range(options.hosts))
    return Topology.from_hosts([name for name in names for _ in range(options.ranks_per_host)])


def num_bytes(text: str) -> int:
    """Bytes from digits with an optional suffix: 4096, 4k, 25M, 64Mi.

    Raises:
        UsageError: anything else.
    """
    digits = text.rstrip("kKMGi")
    suffix = text[len(digits) :].replace("K", "k").replace("ki", "Ki")
    try:
        return int(float(digits) * SUFFIXES[suffix])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"{text!r} is no number of bytes; write it as 4096, 4k, 25M or 64Mi") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m collectives", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("explain", help="print the plan for a topology: forest, seconds, bound, bottleneck")
    hosts = command.add_mutually_exclusive_group(required=True)
    hosts.add_argument("topology", nargs="?", help="a topology JSON file")
    hosts.add_argument("--hosts", type=int, help="instead of a file: so many hosts with equal default links")
    command.add_argument("--ranks-per-host", type=int, default=1, help="with --hosts (default 1)")
    command.add_argument("--collective", choices=list(SPECIFICATIONS), default="all_reduce")
    command.add_argument("--bytes", default="25M", help="message size (default 25M): 4096, 4k, 25M, 64Mi")
    command.add_argument("--root", type=int, help="for broadcast and reduce (default 0)")
    command.add_argument("--trees", action="store_true", help="print the whole forest, too; it reads back")
    command.add_argument("--json", action="store_true", help="print the summary as JSON instead")
    command = commands.add_parser("bench", help="time a collective on this group of ranks, ours and Gloo in turn")
    command.add_argument("--collective", choices=["all", *SPECIFICATIONS], default="all_reduce")
    command.add_argument("--sizes", default=DEFAULT_SIZES, help=f"message sizes (default {DEFAULT_SIZES})")
    command.add_argument("--round-s", type=float, default=0.25, help="seconds of each round (default 0.25)")
    command.add_argument("--no-gloo", action="store_true", help="time ours alone")
    command.add_argument("--json", action="store_true", help="print rows as JSON instead; seconds, bytes per second")
    return parser


if __name__ == "__main__":
    sys.exit(main())
