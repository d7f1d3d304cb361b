"""Rejects an invalid topology, with the place of the fault, such as ``hosts[2].up_bytes_per_s``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

from collectives.errors import PlanError
from collectives.topology.parts import Host, Pair, Site


def check(hosts: tuple[Host, ...], sites: tuple[Site, ...], pairs: tuple[Pair, ...]) -> None:
    """Check names, ranks, rates and latencies, and that every host can be reached from every other.

    Raises:
        PlanError: the message has the place of the fault, what was found and what was wanted.
    """
    _check_hosts(hosts)
    _check_sites(sites, hosts)
    _check_pairs(pairs, hosts)
    _check_numbers(hosts=hosts, sites=sites, pairs=pairs)
    _check_reachable(hosts, pairs)


def check_known(name: str, hosts: tuple[Host, ...], place: str) -> None:
    """Check that a host has this name.

    Raises:
        PlanError: the message has `place`, the name, and the most similar name that exists.
    """
    if all(name != host.name for host in hosts):
        near = difflib.get_close_matches(name, [host.name for host in hosts], 1)
        raise PlanError(f"{place}: no host is called {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _check_hosts(hosts: tuple[Host, ...]) -> None:
    """Names are unique; the ranks are 0 to n - 1, each on one host."""
    owner: dict[int, str] = {}
    for i, host in enumerate(hosts):
        _check_new(host.name, [other.name for other in hosts[:i]], f"hosts[{i}].name")
        if not host.ranks:
            raise PlanError(f"hosts[{i}].ranks ({host.name!r}): got none; wanted at least one rank")
        for rank in host.ranks:
            if rank in owner:
                raise PlanError(f"hosts[{i}].ranks ({host.name!r}): rank {rank} is on {owner[rank]!r} already")
            owner[rank] = host.name
    for rank in range(max(owner, default=0) + 1):
        if rank not in owner:
            raise PlanError(f"hosts: rank {rank} is missing; wanted every rank from 0 to {max(owner, default=0)} once")
    for rank in owner:
        if rank < 0:
            raise PlanError(f"hosts: got rank {rank} on {owner[rank]!r}; ranks start at 0")


def _check_sites(sites: tuple[Site, ...], hosts: tuple[Host, ...]) -> None:
    """Names are unique; a site has known hosts, and a host is in one site at most."""
    site_of: dict[str, str] = {}
    for i, site in enumerate(sites):
        _check_new(site.name, [other.name for other in sites[:i]], f"sites[{i}].name")
        for name in site.hosts:
            check_known(name, hosts, f"sites[{i}].hosts ({site.name!r})")
            if name in site_of:
                raise PlanError(f"sites[{i}].hosts ({site.name!r}): host {name!r} is in site {site_of[name]!r} already")
            site_of[name] = site.name


def _check_pairs(pairs: tuple[Pair, ...], hosts: tuple[Host, ...]) -> None:
    """A pair has two different known hosts and occurs once."""
    for i, pair in enumerate(pairs):
        check_known(pair.source, hosts, f"pairs[{i}].source")
        check_known(pair.target, hosts, f"pairs[{i}].target")
        if pair.source == pair.target:
            raise PlanError(f"pairs[{i}]: source and target are both {pair.source!r}")
        if any((pair.source, pair.target) == (other.source, other.target) for other in pairs[:i]):
            raise PlanError(f"pairs[{i}]: {pair.source!r} to {pair.target!r} is given twice")


def _check_numbers(**parts: Sequence[Host | Site | Pair]) -> None:
    """Rates are finite and more than 0; latencies, and the rates of pairs (0: not connected), may be 0."""
    for part, rows in parts.items():
        for i, row in enumerate(rows):
            for name, value in vars(row).items():
                may_be_zero = name == "latency_s" or part == "pairs"
                if name.endswith("_s") and not (math.isfinite(value) and (value > 0 or (may_be_zero and value == 0))):
                    wanted = "at least 0" if may_be_zero else "more than 0"
                    raise PlanError(f"{part}[{i}].{name}: got {value:g}; wanted {wanted}")


def _check_reachable(hosts: tuple[Host, ...], pairs: tuple[Pair, ...]) -> None:
    """Every host must reach every other, directly or through others.

    If all can be reached from the first, and the first from all, that holds.
    """
    dead = {(pair.source, pair.target) for pair in pairs if pair.bytes_per_s == 0}
    names = [host.name for host in hosts]
    for backwards in (False, True):
        reached, missing = names[:1], set(names[1:] if dead else ())
        for here in reached:
            found = {there for there in missing if ((there, here) if backwards else (here, there)) not in dead}
            missing -= found
            reached += sorted(found)
        if missing:
            far = min(missing, key=names.index)
            source, target = (far, names[0]) if backwards else (names[0], far)
            raise PlanError(
                f"pairs: no path leads from host {source!r} to host {target!r}, not even through other hosts; "
                "wanted a rate above 0 for some pair on the path"
            )


def _check_new(name: str, others: list[str], place: str) -> None:
    if not name or name in others:
        raise PlanError(f"{place}: got {name!r}" + (" a second time" if name else "; wanted a name"))
