"""Which files of the working directory are sent to a cluster, and the archive that holds them.

Everything below the folder is sent, except what can be made again or belongs to one machine: version control, virtual
environments, caches, the runs, and the job's `cluster.exclude`. Symbolic links to folders are left out, too: they
usually lead to data. The rest must be small; if it is not, the error names the largest files, since data does not
belong in an archive that every node unpacks.

The archive depends only on names, contents and executable bits, not on times. Ray names it by its hash, so that nodes
which have unpacked it once do not do so again.
"""

from __future__ import annotations

import fnmatch
import inspect
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from launcher import bootstrap
from launcher.errors import PackingError

BOOTSTRAP = ".narrowgauge"
"""A copy of bootstrap.py, which starts the driver: only there is it known where the node has narrowgauge."""
LIMIT_BYTES = 90 * 1024**2
"""Ray's head accepts requests of up to 100 MiB."""
LIMIT_FILES = 20_000
_EXCLUDED = (
    BOOTSTRAP,
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    "node_modules",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
)
_TIME = (1980, 1, 1, 0, 0, 0)
"""Of every entry, the earliest that a zip file can hold."""


@dataclass(frozen=True)
class PackedFile:
    """A file of the working directory: its path from there, and its size."""

    path: PurePosixPath
    num_bytes: int


def pack(folder: Path, archive: Path, *, exclude: Sequence[str], runs_dir: Path) -> int:
    """Write the archive.

    Args:
        folder: the working directory.
        archive: the zip file to be written.
        exclude: patterns as in `cluster.exclude`.
        runs_dir: the folder of runs, which is left out.

    Returns:
        Its size in bytes.

    Raises:
        PackingError: the files are too large or too many, or one cannot be read.
    """
    files = chosen(found_in(folder, exclude, runs_dir))
    try:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as out:
            out.writestr(_entry(PurePosixPath(BOOTSTRAP), 0o644), inspect.getsource(bootstrap))
            for file in files:
                source = folder / file.path
                mode = 0o755 if os.access(source, os.X_OK) else 0o644
                out.writestr(_entry(file.path, mode), source.read_bytes())
    except OSError as error:
        raise PackingError(
            f"cannot pack the working directory {folder}: {error}; name it in cluster.exclude to leave it here"
        ) from error
    return archive.stat().st_size


def chosen(files: Iterator[PackedFile]) -> list[PackedFile]:
    """The files in the order of their names.

    Raises:
        PackingError: they are too many or too large; the message names the largest so far. The search ends there, since
            somebody may have submitted from a home folder.
    """
    taken: list[PackedFile] = []
    total = 0
    for file in files:
        taken.append(file)
        total += file.num_bytes
        if total > LIMIT_BYTES or len(taken) > LIMIT_FILES:
            raise PackingError(_too_much(taken, total))
    return sorted(taken, key=lambda file: file.path)


def left_out(path: PurePosixPath, exclude: Sequence[str]) -> bool:
    """Whether a file or folder is left out. A pattern is matched against the name and the path from the working
    directory."""
    return path.name in _EXCLUDED or any(
        fnmatch.fnmatchcase(path.name, pattern) or fnmatch.fnmatchcase(str(path), pattern.removesuffix("/"))
        for pattern in exclude
    )


def found_in(folder: Path, exclude: Sequence[str], runs_dir: Path) -> Iterator[PackedFile]:
    """All files to send."""
    for at, folders, names in os.walk(folder):
        here = PurePosixPath(Path(at).relative_to(folder).as_posix())
        folders[:] = [  # os.walk enters only these
            name
            for name in sorted(folders)
            if not left_out(here / name, exclude)
            and not (Path(at) / name / "pyvenv.cfg").exists()
            and (Path(at) / name).resolve() != runs_dir.resolve()
        ]
        for name in sorted(names):
            path = Path(at) / name
            if not left_out(here / name, exclude) and path.is_file():  # no sockets, pipes or links to nowhere
                yield PackedFile(here / name, path.stat().st_size)


def _too_much(files: Sequence[PackedFile], total: int) -> str:
    largest = sorted(files, key=lambda file: -file.num_bytes)[:5]
    named = "\n".join(f"  {file.num_bytes / 1024**2:8.1f} MiB  {file.path}" for file in largest)
    return (
        f"the working directory is too large to send to the cluster: over {total / 1024**2:.0f} MiB in "
        f"{len(files)} files; the limit is {LIMIT_BYTES / 1024**2:.0f} MiB in {LIMIT_FILES} files. "
        f"The largest so far:\n{named}\n"
        "Submit from a folder that holds only the code, list what to leave out in the job's cluster.exclude, and keep "
        "data where every node can read it"
    )


def _entry(path: PurePosixPath, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(str(path), _TIME)
    entry.external_attr = mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry
