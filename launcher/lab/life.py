"""A lab's life: up, down, and up for the time of a command."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from launcher.config.lab_file import LabFile
from launcher.errors import LabError
from launcher.lab import network, ray_nodes, record
from launcher.lab.record import LabRecord
from launcher.lab.signals import undisturbed

TERM_S, KILL_S = 3.0, 10.0
"""How long processes get after SIGTERM, and how long the kernel gets after SIGKILL."""


def up(lab: LabFile, source: str, *, ray: bool = False) -> LabRecord:
    """Bring a lab up; it stays until `down`.

    Args:
        source: path of the lab's file, for people.
        ray: start a Ray node in each host, too.

    Raises:
        LabError: it is up already, or something can't be made. What was made before is gone again then.
    """
    network.check_tools()
    taken = set(network.namespaces(lab)) & set(network.existing())
    if taken and LabRecord.load(lab.name) is None:
        raise LabError(f"namespace {min(taken)!r} is there already and no lab of ours; rename the lab {lab.name!r}")
    made = LabRecord.claim(lab, source)
    try:
        network.build(lab)
        if ray:
            ray_nodes.start(made, tied=False)
    except BaseException:
        with undisturbed():
            down(lab.name)
        raise
    return made


def down(name: str) -> bool:
    """End whatever runs in the lab and remove all that it was made of. False if it wasn't up.

    Raises:
        LabError: a process in the lab outlives SIGKILL, or a namespace can't be removed. It can be called again.
    """
    if name not in record.names():
        return False
    network.check_tools()
    found = LabRecord.load(name)
    if found is None:  # `up` was killed before it had written down, or made, anything
        shutil.rmtree(record.ROOT / name)
        return True
    _end_processes(name, found.namespaces)
    network.destroy(found.namespaces)
    if found.temp_dir:
        shutil.rmtree(found.temp_dir, ignore_errors=True)
    found.remove()
    return True


@contextmanager
def present(lab: LabFile, source: str, before_up: Callable[[str], None]) -> Iterator[LabRecord]:
    """The lab for the time of the block. If it isn't up, it is brought up and goes down at the end.

    Args:
        before_up: told the lab's name just before it is brought up for this.

    Raises:
        LabError: it can't be brought up, or another lab of that name is up.
    """
    there = LabRecord.load(lab.name)
    if there is not None:
        if there.lab != lab:
            raise LabError(
                f"lab {lab.name!r} is up with other contents, from {there.source}; "
                f"`launcher lab down {lab.name}` ends it, or give this one another name"
            )
        network.check_tools()
        yield there
        return
    before_up(lab.name)
    made = up(lab, source)
    try:
        yield made
    finally:
        with undisturbed():
            down(lab.name)


def the_one(name: str | None) -> LabRecord:
    """The lab of that name, or without a name the only one that is up.

    Raises:
        LabError: there is none, or there are several.
    """
    names = record.names()
    if name is None and len(names) != 1:
        said = f"{len(names)} labs are up ({', '.join(names)}); name one" if names else "no lab is up"
        raise LabError(f"{said}; `launcher lab up FILE` brings one up")
    found = LabRecord.load(name or names[0]) if name is None or name in names else None
    if found is None:
        raise LabError(f"no lab {name!r} is up; up now: {', '.join(names) or 'none'}")
    return found


def _end_processes(name: str, spaces: list[str]) -> None:
    """All that live in the lab's namespaces, whoever started them: nothing else can be in there."""
    for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
        deadline = time.monotonic() + patience_s
        told: set[int] = set()
        while living := network.pids(spaces):
            for pid in set(living) - told:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= set(living)
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    if living:
        raise LabError(f"processes {living} in lab {name!r} outlive SIGKILL; `launcher lab down {name}` once more")
