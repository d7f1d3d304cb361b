"""Measured links on disk, by the set of host names: in narrowgauge/links below $XDG_CACHE_HOME or ~/.cache."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from collectives.errors import PlanError
from collectives.topology import Topology

VERSION = 1
logger = logging.getLogger(__name__)


def recall(hosts: Sequence[str]) -> Topology | None:
    """What was measured between these hosts before, with ranks as `hosts` says by name; None if nothing was."""
    path = _path(hosts)
    try:
        return Topology.load(path).seated(hosts)
    except FileNotFoundError:
        return None
    except (PlanError, OSError, UnicodeDecodeError) as error:
        logger.warning("the remembered links in %s cannot be used (%s); measuring again", path, error)
        return None


def remember(topology: Topology) -> Path:
    """Keep a measured topology; the file that holds it.

    Raises:
        OSError: the folder cannot be written.
    """
    path = _path([host.name for host in topology.hosts])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(topology.to_json())
    os.replace(file.name, path)
    return path


def _path(hosts: Sequence[str]) -> Path:
    names = hashlib.sha256("\0".join(sorted(set(hosts))).encode()).hexdigest()[:24]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "narrowgauge" / "links" / f"{names}-{VERSION}.json"
