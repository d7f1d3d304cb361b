"""Bringing a lab up and down, and having it up for the duration of a command.

The record is claimed before the first namespace is made, and removed after the last one is gone. Whatever is killed in
between, there is a record that `down` can start from.
"""

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
from launcher.lab.signals import signals_ignored

TERM_S, KILL_S = 3.0, 10.0
"""Seconds that processes have after SIGTERM, and that the kernel has after SIGKILL."""


def up(lab: LabFile, source: str, *, ray: bool = False) -> LabRecord:
    """Bring a lab up; it stays until `down`.

    Args:
        source: path of the lab file, for messages.
        ray: also start a Ray node in each host.

    Raises:
        LabError: it is up already, or something cannot be made; whatever had been made is removed again.
    """
    network.check_tools()
    taken = set(network.namespaces(lab)) & set(network.existing())
    # Without a record they are not ours, and `down` after a failure would delete them.
    if taken and LabRecord.load(lab.name) is None:
        raise LabError(f"namespace {min(taken)!r} is there already and no lab of ours; rename the lab {lab.name!r}")
    made = LabRecord.claim(lab, source)
    try:
        network.build(lab)
        if ray:
            ray_nodes.start(made, tied=False)
    except BaseException:  # SystemExit of a signal, too
        with signals_ignored():
            down(lab.name)
        raise
    return made


def down(name: str) -> bool:
    """End all processes in the lab and remove its namespaces. False if it was not up.

    Raises:
        LabError: a process in the lab outlives SIGKILL, or a namespace cannot be removed. It can be called again.
    """
    if name not in record.names():
        return False
    network.check_tools()
    found = LabRecord.load(name)
    if found is None:  # `up` was killed between making the folder and writing the record, so nothing else exists
        shutil.rmtree(record.ROOT / name)
        return True
    # A namespace lives on as long as a process is in it, whether or not it has a name, so processes end first.
    _end_processes(name, found.namespaces)
    network.destroy(found.namespaces)
    if found.temp_dir:
        shutil.rmtree(found.temp_dir, ignore_errors=True)
    found.remove()
    return True


@contextmanager
def brought_up(lab: LabFile, source: str, before_up: Callable[[str], None]) -> Iterator[LabRecord]:
    """The lab for the duration of the block. If it is not up, it is brought up, and taken down at the end.

    Args:
        before_up: called with the lab's name before anything is made, so that a warden can take it down.

    Raises:
        LabError: it cannot be brought up, or a different lab of that name is up.
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
        with signals_ignored():
            down(lab.name)


def find(name: str | None) -> LabRecord:
    """The lab of that name; without a name, the only one that is up.

    Raises:
        LabError: there is none, or there are several.
    """
    names = record.names()
    if name is None and len(names) != 1:
        problem = f"{len(names)} labs are up ({', '.join(names)}); name one" if names else "no lab is up"
        raise LabError(f"{problem}; `launcher lab up FILE` brings one up")
    found = LabRecord.load(name or names[0]) if name is None or name in names else None
    if found is None:
        raise LabError(f"no lab {name!r} is up; up now: {', '.join(names) or 'none'}")
    return found


def _end_processes(name: str, spaces: list[str]) -> None:
    """End all processes in the namespaces, whoever started them: nothing but the lab's can be in there."""
    for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
        deadline = time.monotonic() + patience_s
        signalled: set[int] = set()
        while living := network.pids(spaces):  # again, since they may have forked meanwhile
            for pid in set(living) - signalled:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            signalled |= set(living)
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    if living:
        raise LabError(f"processes {living} in lab {name!r} outlive SIGKILL; run `launcher lab down {name}` once more")
