"""The folder for cached files: narrowgauge, below $XDG_CACHE_HOME or ~/.cache.

It is this user's alone. What lies in it is believed, and compiled code is read by unpickling: who may write the folder
can run code as whoever reads it. So it is made with mode 0700, and a folder that belongs to another user, or that other
users may write, is refused.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder(kind: str, make: bool = False) -> Path:
    """The folder for one kind of files.

    Args:
        make: make it if it is missing; otherwise it may not exist.

    Raises:
        OSError: this user has no home folder, as in a container whose user is not in /etc/passwd; or the folder is not
            this user's own; or it is missing and cannot be made.
    """
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OSError(f"{error}; set HOME or XDG_CACHE_HOME") from None
    ours = home / "narrowgauge"
    if make or ours.exists():
        private_folder(ours)
    if make or (ours / kind).exists():
        private_folder(ours / kind)
    return ours / kind


def private_folder(path: Path) -> Path:
    """A folder that is closed to other users; made if it is missing.

    Raises:
        OSError: it cannot be made; or what is there belongs to another user, or other users may write it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()  # of what a link leads to
    if found.st_uid != os.geteuid():
        raise _refused(path, f"belongs to user {found.st_uid}, and this process is user {os.geteuid()}'s")
    if found.st_mode & _OTHERS_MAY_WRITE:
        raise _refused(path, f"may be written by other users (its mode is {stat.S_IMODE(found.st_mode):o})")
    if found.st_mode & _OTHERS:
        path.chmod(0o700)
    return path


def temporary_folder() -> Path:
    """A private folder among the temporary files: the one that all processes of this user share, or else a new one,
    which is removed when this process ends.

    Raises:
        OSError: there is no place for temporary files.
    """
    shared = Path(tempfile.gettempdir()) / f"narrowgauge-{os.geteuid()}"
    if not shared.is_symlink():  # anybody may have put a link there
        try:
            return private_folder(shared)
        except OSError:  # so may anybody have made this folder: it is of no use, and does no harm
            pass
    own = Path(tempfile.mkdtemp(prefix="narrowgauge-"))
    atexit.register(_remove, own, os.getpid())
    return own


def _remove(folder: Path, maker: int) -> None:
    if os.getpid() == maker:  # a forked child runs its parent's exit handlers, too
        shutil.rmtree(folder, ignore_errors=True)


def _refused(path: Path, why: str) -> PermissionError:
    return PermissionError(
        f"{path} {why}: nothing in it is believed. Remove it, or set XDG_CACHE_HOME to a folder of your own"
    )
