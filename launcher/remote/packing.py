"""What of the working directory travels to a cluster, and the archive that it travels in.

Everything below the folder goes, except what can be made anew or belongs to one machine: version control, virtual
environments, caches, the runs, and what the job's `cluster.exclude` names. Folders that are symbolic links stay behind,
too: they usually lead to data. What remains must be small; if it isn't, the largest files are named, since data does
not belong in an archive that every node unpacks.

The archive depends on nothing but names, contents and which files may be executed, so that nodes which have unpacked
it once don't do so again.
"""

from __future__ import annotations

import fnmatch
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from launcher.errors import PackingError

LIMIT_BYTES = 90 * 1024**2
"""Ray's head takes requests of up to 100 MiB."""
LIMIT_FILES = 20_000
_LEFT_OUT = (".git", ".hg", ".svn", "__pycache__", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache")
_OLDEST = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class PackedFile:
    """A file of the working directory: its path from there, and its size."""

    path: PurePosixPath
    num_bytes: int


def pack(folder: Path, archive: Path, *, exclude: Sequence[str], runs_dir: Path) -> int:
    """Write the archive, and give its size in bytes.

    Args:
        folder: the working directory.
        archive: the zip file to be written.
        exclude: patterns as of `cluster.exclude`.
        runs_dir: the folder of runs, which stays behind wherever it is.

    Raises:
        PackingError: it is too much, or a file can't be read.
    """
    files = chosen(found_in(folder, exclude, runs_dir))
    try:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as out:
            out.writestr(_entry(PurePosixPath(".narrowgauge"), 0o644), "")  # so that it is never empty
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
        PackingError: they are too many or too large; the message names the largest. The rest isn't looked at then.
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
    """Whether a file or folder stays behind. A pattern is one of a name, or of a path from the working directory."""
    return path.name in _LEFT_OUT or any(
        fnmatch.fnmatchcase(path.name, pattern) or fnmatch.fnmatchcase(str(path), pattern.removesuffix("/"))
        for pattern in exclude
    )


def found_in(folder: Path, exclude: Sequence[str], runs_dir: Path) -> Iterator[PackedFile]:
    """All files that go."""
    for at, folders, names in os.walk(folder):
        here = PurePosixPath(Path(at).relative_to(folder).as_posix())
        folders[:] = [
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
        f"the working directory is too large to travel to the cluster: over {total / 1024**2:.0f} MiB in "
        f"{len(files)} files, at most {LIMIT_BYTES / 1024**2:.0f} MiB in {LIMIT_FILES} files may. The largest so far:\n"
        f"{named}\nSubmit from the folder of the code alone, name what stays behind in the job's cluster.exclude, and "
        "have data where every node finds it"
    )


def _entry(path: PurePosixPath, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(str(path), _OLDEST)
    entry.external_attr = mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry
