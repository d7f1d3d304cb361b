"""Where this project keeps what it may lose: in narrowgauge, below $XDG_CACHE_HOME or ~/.cache."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder for one kind of things; it may not exist yet.

    Raises:
        OSError: this user has no home, as in a container whose user is in no /etc/passwd.
    """
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OSError(f"{error}; set HOME or XDG_CACHE_HOME") from None
    return home / "narrowgauge" / kind
