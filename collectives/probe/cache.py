"""Measured links on disk, in narrowgauge/links below $XDG_CACHE_HOME or ~/.cache.

A file belongs to a set of hosts, each given by its name and the identity of its machine. A reboot changes the identity,
so links are measured again after it: cables and addresses may have changed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from collectives.caches import cache_folder
from collectives.errors import PlanError
from collectives.topology import Topology

VERSION = 1
logger = logging.getLogger(__name__)


def recall(hosts: Sequence[str], machines: Sequence[str]) -> Topology | None:
    """The topology measured between these hosts before; None, with a warning, if the file cannot be used.

    Args:
        hosts, machines: for each rank the name of its host and the identity of its machine.

    Returns:
        None also if nothing was measured yet.
    """
    try:
        path = _path(hosts, machines)
        return Topology.load(path).seated(hosts)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        why = f"{path}: {error}"
    except (PlanError, OSError) as error:  # both name the file
        why = str(error)
    logger.warning("cannot use the cached links, so they are measured again: %s", why)
    return None


def remember(topology: Topology, hosts: Sequence[str], machines: Sequence[str]) -> Path:
    """Write a measured topology to the cache. Arguments as those of `recall`.

    Returns:
        The path of the file.

    Raises:
        OSError: the folder cannot be made or is not this user's own, or the file cannot be written.
    """
    path = _path(hosts, machines, make=True)
    # A temporary file and a rename: several launches may write at once, and a reader must not see half a file.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        try:
            file.write(topology.to_json())
            file.flush()
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise
    return path


def _path(hosts: Sequence[str], machines: Sequence[str], make: bool = False) -> Path:
    which = sorted({f"{host}\0{machine}" for host, machine in zip(hosts, machines, strict=True)})
    names = hashlib.sha256("\0".join(which).encode()).hexdigest()[:24]
    return cache_folder("links", make) / f"{names}-{VERSION}.json"
