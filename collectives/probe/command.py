"""`python -m collectives probe`: measure the links between the hosts of the ranks that torchrun or the lab started."""

from __future__ import annotations

import argparse
import logging
import os
import time
from datetime import timedelta
from pathlib import Path

from collectives.errors import RendezvousError, UsageError
from collectives.options import current
from collectives.probe.cache import remember
from collectives.probe.measure import measure
from collectives.topology import Topology
from collectives.units import rate, seconds

HINT = "start it as: torchrun --nnodes ... -m collectives probe, or launcher probe CONFIG"
TIMEOUT_S = 120.0
MAX_MATRIX_HOSTS = 16
logger = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options to its parser."""
    parser.add_argument("--json", action="store_true", help="print the topology as JSON instead")
    parser.add_argument(
        "--save", metavar="FILE", type=Path, help="write the topology to FILE; a job's collectives.topology reads it"
    )


def main(options: argparse.Namespace) -> str:
    """Measure the links.

    Returns:
        What rank 0 should print; "" on the other ranks.

    Raises:
        UsageError: not started by torchrun or the lab, or --save names a folder that does not exist.
        RendezvousError: the ranks did not find each other, or one did not answer.
        OSError: the file cannot be written.
    """
    if options.save is not None:
        check(options.save)
    topology, took_s = probe()
    if int(os.environ["RANK"]) != 0:
        return ""
    if options.save is not None:
        options.save.write_text(topology.to_json(), encoding="utf-8")
    return topology.to_json() if options.json else format_topology(topology, took_s)


def check(save: Path) -> None:
    """Check --save before measuring, which takes seconds.

    Raises:
        UsageError: the file's folder does not exist.
    """
    if not save.absolute().parent.is_dir():
        raise UsageError(f"--save {save}: folder {save.parent} does not exist; create it first")


def probe() -> tuple[Topology, float]:
    """Measure the links between the hosts of this group and write them to the cache.

    Returns:
        The topology, the same on all ranks, and the seconds that measuring took.

    Raises:
        UsageError, RendezvousError: as `main`.
    """
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(f"probe runs on several ranks, but {', '.join(missing)} is not set; {HINT}")
    from torch.distributed.rendezvous import rendezvous as find_store  # here: `explain` must not load torch

    from collectives.transport import rendezvous

    try:
        store, rank, size = next(iter(find_store("env://", timeout=timedelta(seconds=TIMEOUT_S))))
    except RuntimeError as error:  # torch raises DistNetworkError or DistStoreError
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RendezvousError(f"rank {os.environ['RANK']} cannot reach rank 0's store at {where}: {error}") from None
    with rendezvous.meet(store, rank, size, "probe", 0, current(), TIMEOUT_S) as formed:
        hosts = rendezvous.host_names(formed.rank_infos)
        formed.connect()
        formed.open_streams(max(1, *(rank_info.interfaces for rank_info in formed.rank_infos)))
        started = time.perf_counter()
        topology = measure(rank, hosts, formed.connections.data, TIMEOUT_S)
        took_s = time.perf_counter() - started
    formed.connections.close()
    if rank == 0 and len(topology.hosts) > 1:
        try:
            remember(topology, hosts, [rank_info.link_key() for rank_info in formed.rank_infos])
        except OSError as error:
            logger.warning("cannot write the measured links to the cache: %s", error)
    return topology, took_s


def format_topology(topology: Topology, took_s: float) -> str:
    """Two tables: rates and latency of each host, and rates from host (row) to host (column), in Mbit/s of payload."""
    hosts = topology.hosts
    width = max(8, *(len(host.name) + 2 for host in hosts))
    count = "1 host" if len(hosts) == 1 else f"{len(hosts)} hosts"
    lines = [f"{count}, measured in {took_s:.1f} s; Mbit/s of payload", ""]
    lines.append("".join(f"{name:>{width}}" for name in ("host", "up", "down", "latency", "memory", "ranks")))
    for host in hosts:
        row = (
            host.name, _mbit(host.up_bytes_per_s), _mbit(host.down_bytes_per_s),
            seconds(host.latency_s), rate(host.memory_bytes_per_s), str(len(host.ranks)),
        )  # fmt: skip
        lines.append("".join(f"{value:>{max(width, len(value) + 2)}}" for value in row))
    for site in topology.sites:
        up, down = _mbit(site.up_bytes_per_s), _mbit(site.down_bytes_per_s)
        lines.append(f"{site.name}: up {up}, down {down}, shared by {', '.join(site.hosts)}")
    if 1 < len(hosts) <= MAX_MATRIX_HOSTS:
        lines += ["", "".join(f"{name:>{width}}" for name in ("from\\to", *(host.name for host in hosts)))]
        for host in hosts:
            cells = [_between(topology, host.ranks[0], other.ranks[0]) for other in hosts]
            lines.append("".join(f"{value:>{width}}" for value in (host.name, *cells)))
    return "\n".join(lines) + "\n"


def _between(topology: Topology, source: int, target: int) -> str:
    if source == target:
        return "-"
    return _mbit(min(topology.links[link].bytes_per_s for link in topology.route(source, target)))


def _mbit(bytes_per_s: float) -> str:
    mbit = bytes_per_s * 8e-6
    return f"{mbit:.0f}" if mbit >= 100 else f"{mbit:.3g}"
