"""Processes in a host of the lab: in its network namespace, with its hostname and an /etc/hosts of the lab.

The kernel's calls are made through ctypes. `ip netns exec` sets no hostname, takes /etc/hosts from files below /etc,
and cannot put a thread of this process into a namespace (`call`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TypeVar

from launcher.config.lab_file import LabFile
from launcher.errors import LabError
from launcher.lab.network import namespace_of
from launcher.lab.record import hosts_file

Result = TypeVar("Result")

_CLONE_NEWNET, _CLONE_NEWUTS, _CLONE_NEWNS = 0x40000000, 0x04000000, 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def start(
    lab: LabFile,
    index: int,
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    tied: bool = True,
) -> subprocess.Popen[bytes]:
    """Start a command in a host, in a session of its own.

    Args:
        index: of the host in `lab.hosts`.
        env: the whole environment of the command.
        tied: the kernel kills the command when the calling thread ends, and so at the latest with this process.

    Raises:
        LabError: there is no such command, or the lab is not up.
    """
    name, hosts, parent = lab.hosts[index].name, os.fsencode(hosts_file(lab.name)), os.getpid()

    def enter() -> None:  # in the child, between fork and exec
        _enter_network(lab, index)
        _checked(_libc.unshare(_CLONE_NEWUTS | _CLONE_NEWNS))
        socket.sethostname(name)
        # Mounts of a new mount namespace still propagate to the old one where / is shared, as under systemd.
        _checked(_libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None))
        _checked(_libc.mount(hosts, b"/etc/hosts", None, _MS_BIND, None))
        if tied:
            _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
            if os.getppid() != parent:  # it died before prctl, which then never fires
                os._exit(1)

    try:
        return subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=enter,
        )
    except FileNotFoundError:
        raise LabError(f"no command {command[0]!r} in PATH, to run on host {name!r}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise LabError(f"cannot start {command[0]!r} on host {name!r}: {error}") from None


def call(lab: LabFile, index: int, function: Callable[[], Result]) -> Result:
    """Call a function in the host's network. A namespace belongs to a thread, so a thread of its own enters it and
    ends."""
    with ThreadPoolExecutor(max_workers=1, initializer=_enter_network, initargs=(lab, index)) as thread:
        return thread.submit(function).result()


def _enter_network(lab: LabFile, index: int) -> None:
    namespace = os.open(f"/run/netns/{namespace_of(lab.name, lab.hosts[index].name)}", os.O_RDONLY | os.O_CLOEXEC)
    _checked(_libc.setns(namespace, _CLONE_NEWNET))
    os.close(namespace)


def _checked(status: int) -> None:
    if status != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
