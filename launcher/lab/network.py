"""Namespaces, bridges and shaped links of one lab, by `ip` and `tc`.

    namespace ng.LAB.HOST                  namespace ng.LAB, the switch
    lab0 --------------------------------- h0 -- core ---- down0 ======= up0 -- site0 -- h3 ------ lab0 of a host there
    shaped: the host's up                  shaped: its down
                                                           shaped: the site's down and up

Shaping is `tc tbf`, a token bucket, at the end where bytes leave: Linux shapes what a device sends, not what it
receives. A cable is cut at the switch, so the host loses carrier as with a real one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from launcher.config.lab_file import NETWORK, LabFile
from launcher.errors import LabError

INTERFACE = "lab0"
"""Name of the interface in every host."""
MIN_BURST_BYTES = 16 * 1024
"""Of a link. TCP hands down packets of up to 64 KiB for the device to cut up. A burst below that makes tbf cut them
before it shapes: with bursts of 1 ms, links up to 500 Mbit/s send in small portions, as real ones do. On faster links
whole packets pass."""
MIN_QUEUE_BYTES = 64 * 1024
"""Of a link: one packet. 20 ms, the default, is about what switches have."""
NEEDS = (
    "a lab needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN) and the commands `ip` and `tc` of iproute2; without them, "
    "`emulate:` in a job file or NARROWGAUGE_EMULATE paces the engine's own connections"
)


@dataclass(frozen=True)
class Port:
    """One end of a cable. What leaves here is shaped."""

    namespace: str
    device: str


@dataclass(frozen=True)
class Buffers:
    """What links of a lab send at once, and what waits in front of them: seconds of a link's rate."""

    burst_s: float
    queue_s: float


@dataclass(frozen=True)
class Cable:
    """The link of a host or a site: the ports that shape its two directions, and their rates by the lab file in
    Mbit/s."""

    up: Port
    down: Port
    up_mbit: float
    down_mbit: float
    buffers: Buffers


def switch_of(lab: str) -> str:
    """Name of the namespace with the lab's bridges."""
    return f"ng.{lab}"


def namespace_of(lab: str, host: str) -> str:
    """Name of the namespace of a host."""
    return f"ng.{lab}.{host}"


def namespaces(lab: LabFile) -> list[str]:
    """Names of all namespaces of a lab."""
    return [switch_of(lab.name), *(namespace_of(lab.name, host.name) for host in lab.hosts)]


def cables(lab: LabFile) -> dict[str, Cable]:
    """The links of all hosts and sites, by name. Names of hosts and sites differ, which the lab file is checked for."""
    switch, buffers = switch_of(lab.name), Buffers(lab.burst_ms / 1e3, lab.queue_ms / 1e3)
    found = {}
    for index, host in enumerate(lab.hosts):
        up, down = Port(namespace_of(lab.name, host.name), INTERFACE), Port(switch, f"h{index}")
        found[host.name] = Cable(up, down, host.up, host.down, buffers)
    for index, site in enumerate(lab.sites):
        up, down = Port(switch, f"up{index}"), Port(switch, f"down{index}")
        found[site.name] = Cable(up, down, site.up, site.down, buffers)
    return found


def check_tools() -> None:
    """Check that this process may create namespaces and links.

    Raises:
        LabError: it is not root, or `ip` or `tc` is missing.
    """
    missing = [name for name in ("ip", "tc") if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        got = f"no `{missing[0]}` in PATH" if missing else f"user id {os.geteuid()}"
        raise LabError(f"{NEEDS}; got {got}")


def build(lab: LabFile) -> None:
    """Create all namespaces, bridges and links.

    Raises:
        LabError: something cannot be created; what was created before it is left for `destroy`.
    """
    for namespace in namespaces(lab):
        _ip("netns", "add", namespace)
        # A new namespace has a loopback device that is down; processes of one host talk over it.
        _ip("-n", namespace, "link", "set", "lo", "up")
    switch, all_cables = switch_of(lab.name), cables(lab)
    bridge_of = {name: f"site{index}" for index, site in enumerate(lab.sites) for name in site.hosts}
    for bridge in ("core", *(f"site{index}" for index in range(len(lab.sites)))):
        _in(switch, "link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
        _in(switch, "link", "set", bridge, "up")
    for index, host in enumerate(lab.hosts):
        cable = all_cables[host.name]
        _join(cable)
        _in(switch, "link", "set", cable.down.device, "master", bridge_of.get(host.name, "core"))
        address = f"{lab.address(index)}/{NETWORK.prefixlen}"
        _in(cable.up.namespace, "addr", "add", address, "broadcast", "+", "dev", INTERFACE)
    # The link of a site joins two bridges of the switch, so both of its ports are in the same namespace.
    for index, site in enumerate(lab.sites):
        cable = all_cables[site.name]
        _join(cable)
        _in(switch, "link", "set", cable.up.device, "master", f"site{index}")
        _in(switch, "link", "set", cable.down.device, "master", "core")


def destroy(names: list[str]) -> None:
    """Delete those of the namespaces that exist, and with them all devices in them."""
    there = set(existing())
    for name in names:
        if name in there:
            _ip("netns", "delete", name)


def existing() -> list[str]:
    """Names of all named network namespaces of this machine."""
    return [found["name"] for found in json.loads(_ip("-j", "netns", "list") or "[]")]


def pids(names: list[str]) -> list[int]:
    """Processes in those of the namespaces that exist, without this one."""
    there = set(existing())
    found = [int(pid) for name in names if name in there for pid in _ip("netns", "pids", name).split()]
    return [pid for pid in found if pid != os.getpid()]


def shape(port: Port, mbit: float, buffers: Buffers) -> None:
    """Limit a port to `mbit` Mbit/s, from now on.

    The old tbf is deleted, with the packets that wait in it, not changed: a packet in its queue that is larger than the
    new burst would never get enough tokens, and block all that are behind it.
    """
    rate = mbit * 1e6 / 8
    burst = max(rate * buffers.burst_s, MIN_BURST_BYTES)
    queue = max(rate * buffers.queue_s, MIN_QUEUE_BYTES)
    # `limit` counts the bytes that may wait for tokens, so a burst must fit on top of the queue.
    tc, of_port = ("tc", "-n", port.namespace, "qdisc"), ("dev", port.device, "root")
    there = json.loads(_run(*tc[:-1], "-j", "qdisc", "show", "dev", port.device) or "[]")
    if any(one["kind"] == "tbf" for one in there):
        _run(*tc, "delete", *of_port)
    _run(
        *(*tc, "add", *of_port, "tbf"),
        *("rate", f"{rate * 8:.0f}bit", "burst", f"{burst:.0f}", "limit", f"{queue + burst:.0f}"),
    )


def rate_now(port: Port) -> float:
    """Current limit of a port in Mbit/s."""
    (found,) = json.loads(_run("tc", "-n", port.namespace, "-j", "qdisc", "show", "dev", port.device))
    return float(found["options"]["rate"]) * 8 / 1e6


def cut(cable: Cable) -> None:
    """Disconnect the link. The host loses carrier; routes and addresses stay, as with a pulled cable."""
    _in(cable.down.namespace, "link", "set", cable.down.device, "down")


def restore(cable: Cable) -> None:
    """Reconnect the link."""
    _in(cable.down.namespace, "link", "set", cable.down.device, "up")


def is_cut(cable: Cable) -> bool:
    """Whether the link is disconnected."""
    (found,) = json.loads(_ip("-n", cable.down.namespace, "-j", "link", "show", "dev", cable.down.device))
    return "UP" not in found["flags"]


def _join(cable: Cable) -> None:
    """Create the pair of devices of a link, shape both, and then set them up, so that no packet passes unshaped."""
    up, down = cable.up, cable.down
    _in(up.namespace, "link", "add", up.device, "type", "veth", "peer", "name", down.device, "netns", down.namespace)
    shape(up, cable.up_mbit, cable.buffers)
    shape(down, cable.down_mbit, cable.buffers)
    for port in (up, down):
        _in(port.namespace, "link", "set", port.device, "up")


def _in(namespace: str, *words: str) -> str:
    return _ip("-n", namespace, *words)


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str) -> str:
    done: Any = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        problem = " ".join(done.stderr.split()) or f"status {done.returncode}"
        needs = f"; {NEEDS}" if "not permitted" in problem else ""
        raise LabError(f"`{' '.join(words)}` failed: {problem}{needs}")
    return str(done.stdout)
