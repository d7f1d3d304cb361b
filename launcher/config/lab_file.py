"""Schema of the lab file: each field's name, unit, default, meaning and check in one place. Plain values, no I/O."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from collectives.topology import Host, Site, Topology
from launcher.errors import Contradiction
from launcher.schema import Section
from launcher.units import payload_bytes_per_s

NETWORK = ipaddress.ip_network("10.77.0.0/24")
"""Addresses are visible inside a lab only, so all labs can use the same ones."""
_FIRST_ADDRESS = 101
"""Three digits in each address, so that sorting addresses as text gives the order of the hosts."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,23}")
_Rate = Annotated[float, Field(ge=0.1, le=40_000)]


class _Named(Section):
    """Something with a name that fits into names of namespaces and into /etc/hosts."""

    name: str

    @field_validator("name")
    @classmethod
    def _short_and_plain(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("small letters, digits and '-', starting with a letter or digit, at most 24")
        return name


class _Linked(_Named):
    """Something with a link: `mbit` both ways, or `up_mbit` and `down_mbit`."""

    mbit: _Rate | None = Field(default=None, description="Rate of the link, up and down, in Mbit/s.")
    up_mbit: _Rate | None = Field(default=None, description="Rate to the network, in Mbit/s.")
    down_mbit: _Rate | None = Field(default=None, description="Rate from the network, in Mbit/s.")

    @model_validator(mode="before")
    @classmethod
    def _one_form_of_rate(cls, value: Any) -> Any:
        if isinstance(value, dict):
            given = {"mbit", "up_mbit", "down_mbit"} & value.keys()
            if given not in ({"mbit"}, {"up_mbit", "down_mbit"}) and not value.keys() - cls.model_fields.keys():
                raise ValueError("the link's rate: either mbit, or up_mbit and down_mbit")
        return value

    @property
    def up(self) -> float:
        """Mbit/s to the network."""
        rate = self.mbit if self.up_mbit is None else self.up_mbit
        assert rate is not None
        return rate

    @property
    def down(self) -> float:
        """Mbit/s from the network."""
        rate = self.mbit if self.down_mbit is None else self.down_mbit
        assert rate is not None
        return rate


class LabHost(_Linked):
    """A host: a network namespace with this hostname."""

    name: str = Field(description="Hostname.")
    ranks: int = Field(
        default=1, ge=1, le=256, description="Number of processes that `launcher lab run` starts on this host."
    )


class LabSite(_Linked):
    """Hosts behind one shared uplink."""

    name: str = Field(description="Name of the site, different from all names of hosts.")
    hosts: list[str] = Field(min_length=1, description="Names of the hosts in this site.")


class LabFile(_Named):
    """A lab file."""

    name: str = Field(description="Name of the lab.")
    hosts: list[LabHost] = Field(min_length=1, max_length=150, description="The hosts, in the order of their ranks.")
    sites: list[LabSite] = Field(
        default=[], description="Sites: groups of hosts that share an uplink. A host may be in none."
    )
    burst_ms: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="What a link sends at once, at its device's own speed, before its rate applies: milliseconds of "
        "that rate, at least 16 KiB.",
    )
    queue_ms: float = Field(
        default=20.0, gt=0, le=2000, description="Queue of a link in milliseconds of its rate, at least 64 KiB."
    )

    def address(self, index: int) -> str:
        """Address of the host at that position in `hosts`."""
        return str(NETWORK[_FIRST_ADDRESS + index])

    def ranks_of(self, index: int) -> range:
        """Ranks of the host at that position in `hosts`: they are numbered host by host."""
        first = sum(host.ranks for host in self.hosts[:index])
        return range(first, first + self.hosts[index].ranks)

    def topology(self) -> Topology:
        """What the lab's links carry, in payload bytes per second of TCP."""
        hosts = (
            Host(
                host.name,
                tuple(self.ranks_of(index)),
                up_bytes_per_s=_payload_bytes_per_s(host.up),
                down_bytes_per_s=_payload_bytes_per_s(host.down),
            )
            for index, host in enumerate(self.hosts)
        )
        sites = (
            Site(site.name, tuple(site.hosts), _payload_bytes_per_s(site.up), _payload_bytes_per_s(site.down))
            for site in self.sites
        )
        return Topology(tuple(hosts), tuple(sites))


def _payload_bytes_per_s(mbit: float) -> float:
    """Without digits that only rounding put there, since people read the topology file."""
    return round(payload_bytes_per_s(mbit), 3)


def contradictions(lab: LabFile) -> Iterator[Contradiction]:
    """What a schema cannot express: duplicate names, sites of unknown hosts, hosts in two sites."""
    seen: set[str] = set()
    for part, rows in (("hosts", lab.hosts), ("sites", lab.sites)):
        for index, row in enumerate(rows):
            if row.name in seen:
                yield Contradiction(
                    (part, index, "name"),
                    f"duplicate name {row.name!r}",
                    row.name,
                    "a different name for each host and site",
                )
            seen.add(row.name)
    names = [host.name for host in lab.hosts]
    site_of: dict[str, str] = {}
    for index, site in enumerate(lab.sites):
        for position, name in enumerate(site.hosts):
            place = ("sites", index, "hosts", position)
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                yield Contradiction(
                    place, f"no host is called {name!r}", name, "one of " + ", ".join(names), near[0] if near else None
                )
            elif name in site_of:
                yield Contradiction(
                    place,
                    f"host {name!r} is in two sites",
                    f"{site_of[name]} and {site.name}",
                    "each host in at most one site",
                )
            site_of.setdefault(name, site.name)
