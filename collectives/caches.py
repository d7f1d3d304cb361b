"""The folder for cached files: narrowgauge, below $XDG_CACHE_HOME or ~/.cache."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder for one kind of files; it may not exist yet.

    Raises:
        OSError: this user has no home folder, as in a container whose user is not in /etc/passwd.
    """
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OSError(f"{error}; set HOME or XDG_CACHE_HOME") from None
    return home / "narrowgauge" / kind
