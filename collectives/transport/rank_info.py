"""What a rank says of itself when it comes to a group, and what must be equal on all ranks before they go on."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from collectives.errors import RendezvousError
from collectives.options import Options
from collectives.transport import tcp
from collectives.transport.handshake import PROTOCOL
from collectives.version import __version__

OURS, MATH = ("protocol", "narrowgauge"), ("numpy", "scipy")


@dataclass(frozen=True)
class RankInfo:
    """What a rank publishes about itself.

    Attributes:
        host: its host's name: as given, else the machine's.
        machine: identity of the kernel and network it runs on.
        addresses, port: where it listens; port is 0 until it does.
        interfaces: how many of the addresses belong to interfaces that the options name; 0 if they name none.
        streams: connections for slices to each peer that its options ask for; None: as many as the links need.
        log: path of its log, None if it has none.
        max_in_flight: bytes that one of its connections may have in flight.
        backend: the one that its options ask for.
        versions: of the protocol, this package, numpy and scipy.
        nonce: made anew each time, so that nothing said at one meeting holds at another.
    """

    rank: int
    host: str
    emulated: bool
    machine: str
    addresses: tuple[str, ...]
    interfaces: int
    port: int
    streams: int | None
    log: str | None
    max_in_flight: int = 1 << 22
    backend: str = "narrowgauge"
    versions: dict[str, str] = field(default_factory=dict)
    nonce: str = ""

    def describe(self) -> str:
        return f"rank {self.rank} ({self.host})"

    def link_key(self) -> str:
        """What measurements of its links are kept under: the machine, and its addresses if interfaces are named."""
        return f"{self.machine} {','.join(self.addresses)}" if self.interfaces else self.machine

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def own_info(rank: int, options: Options, store_host: str | None) -> RankInfo:
    """What this process says of itself as a rank.

    Raises:
        RendezvousError: the interface that the options name is not here.
    """
    interfaces = tcp.interface_addresses(options.interface)
    return RankInfo(
        rank=rank,
        host=options.host or socket.gethostname(),
        emulated=options.host is not None,
        machine=tcp.machine_identity(),
        addresses=tuple(interfaces or tcp.own_addresses(store_host)),
        interfaces=len(interfaces),
        port=0,
        streams=options.streams if isinstance(options.streams, int) else None,
        log=options.log,
        max_in_flight=tcp.max_bytes_in_flight(),
        backend=options.backend,
        versions={"protocol": PROTOCOL, "narrowgauge": __version__} | math_versions(),
        nonce=secrets.token_hex(16),
    )


def math_versions() -> dict[str, str]:
    """As the modules have them: in a program that was packed into one file nothing is known of their installation."""
    import numpy
    import scipy

    return {"numpy": numpy.__version__, "scipy": scipy.__version__}


def read_info(fields: object, rank: int, who: str) -> RankInfo:
    """What a rank published about itself.

    Raises:
        RendezvousError: it is something else, as of another version.
    """
    types: dict[str, Any] = {
        **dict.fromkeys(("host", "machine", "backend", "nonce"), str),
        **dict.fromkeys(("rank", "interfaces", "port", "max_in_flight"), int),
        **{
            "emulated": bool,
            "addresses": list,
            "versions": dict,
            "streams": (int, type(None)),
            "log": (str, type(None)),
        },
    }
    problem = None
    if not isinstance(fields, dict):
        problem = f"got a {type(fields).__name__}"
    elif wrong := [name for name, kind in types.items() if not isinstance(fields.get(name), kind)]:
        problem = f"{wrong[0]} is {fields.get(wrong[0], 'missing')!r}"[:200]
    elif fields["rank"] != rank or not all(isinstance(each, str) for each in fields["addresses"]):
        problem = f"rank is {fields['rank']!r}, addresses are {fields['addresses']!r}"[:200]
    if problem is not None:
        versions = fields.get("versions") if isinstance(fields, dict) else None
        raise RendezvousError(
            f"what {who} published about itself cannot be read: {problem}; this rank has narrowgauge {__version__} "
            f"({PROTOCOL}), that one {versions or 'another version'}"
        )
    known = {name: fields[name] for name in types}  # type: ignore[index]
    return RankInfo(**{**known, "addresses": tuple(known["addresses"])})


def check_versions(rank_infos: Sequence[RankInfo]) -> None:
    """All ranks must run the same version of this package: they plan for themselves and speak one protocol.

    Raises:
        RendezvousError: two ranks differ; shows both.
    """
    first = rank_infos[0]
    for name in OURS:
        for other in rank_infos:
            if other.versions.get(name) != first.versions.get(name):
                raise RendezvousError(
                    f"{first.describe()} has {name} {first.versions.get(name)}, {other.describe()} has "
                    f"{other.versions.get(name)}; install the same version of narrowgauge on all machines"
                )


def differing_math(rank_infos: Sequence[RankInfo]) -> str | None:
    """The versions of numpy and scipy of two ranks that differ in them; None if all have the same."""
    first = rank_infos[0]
    for other in rank_infos:
        if any(other.versions.get(name) != first.versions.get(name) for name in MATH):
            each = (
                f"{r.describe()} has " + ", ".join(f"{n} {r.versions.get(n)}" for n in MATH) for r in (first, other)
            )
            return "; ".join(each)
    return None


def host_names(rank_infos: Sequence[RankInfo]) -> list[str]:
    """Each rank's host as a name that is unique: two machines that both call themselves "ubuntu" become two hosts."""
    names: dict[tuple[str, str], str] = {}
    for rank_info in rank_infos:
        key = (rank_info.host, "" if rank_info.emulated else rank_info.machine)
        if key not in names:
            namesakes = sum(host == rank_info.host for host, _ in names)
            names[key] = rank_info.host if not namesakes else f"{rank_info.host}#{namesakes + 1}"
    return [names[rank_info.host, "" if rank_info.emulated else rank_info.machine] for rank_info in rank_infos]


def listening_addresses(own: RankInfo, rank_infos: Sequence[RankInfo], store_host: str | None) -> tuple[str, ...]:
    """Where a rank should listen, no wider than it must be: on loopback where all ranks are on one machine, else on the
    interfaces that the options name, else on the one that reaches the store. () if that is not known: everywhere."""
    if len({each.machine for each in rank_infos}) == 1:
        return (tcp.LOOPBACK,)
    if own.interfaces:
        return own.addresses
    reaching = tcp.address_towards(store_host) if store_host else None
    return (reaching,) if reaching in own.addresses and not tcp.is_loopback(reaching or "") else ()


def at(rank_info: RankInfo, listens: object, who: str) -> RankInfo:
    """The same rank, once it has published where it listens.

    Raises:
        RendezvousError: what it published is something else.
    """
    port = listens.get("port") if isinstance(listens, dict) else None
    addresses = listens.get("addresses") if isinstance(listens, dict) else None
    is_list = isinstance(addresses, list) and all(isinstance(each, str) for each in addresses)
    if type(port) is not int or not 0 < port < 65536 or not is_list:
        raise RendezvousError(f"what {who} published about where it listens cannot be read: {listens!r}"[:300])
    return replace(rank_info, port=port, addresses=tuple(addresses or rank_info.addresses))
