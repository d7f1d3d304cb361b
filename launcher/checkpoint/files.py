"""Checkpoints on disk: complete or absent, verified by checksums, and limited in number. Independent of torch.

    checkpoints/
        step-00000050/
            state/            files of torch.distributed.checkpoint
            shared.pt         and others
            manifest.json     written last: step, facts, and size and SHA-256 of every other file

A checkpoint is written as `.step-00000050.partial`, flushed to the disk, and then renamed, which is atomic. Whatever is
killed in between, a folder `step-N` is complete. What was cut off keeps its hidden name, and is removed when the next
checkpoint is written.

Flushing before the rename matters: a file system may write the rename first, and after a power failure there would be a
`step-N` with empty files. The checksums catch what flushing cannot: damaged disks, and copies cut off by something
else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
"""Version of the layout above; another one is refused."""
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
"""Eight digits or more, so that names sort as steps do."""
_SCRATCH = re.compile(r"\.step-\d{8,}\.(partial|old)")


@dataclass(frozen=True)
class StoredCheckpoint:
    """A complete checkpoint: every file matches the manifest.

    Attributes:
        facts: what the writer put into the manifest.
    """

    folder: Path
    step: int
    facts: dict[str, Any]


class Damaged(Exception):
    """A checkpoint that does not match its manifest. The message names the file, got and wanted."""


def write(folder: Path, step: int, facts: dict[str, Any], fill: Callable[[Path], None]) -> tuple[Path, int]:
    """Write one checkpoint, completely or not at all. One of the same step is replaced.

    Args:
        folder: of all checkpoints of a run; created if it does not exist.
        facts: added to the manifest, as JSON.
        fill: called with an empty folder, into which it writes the files.

    Returns:
        The folder of the checkpoint, and the total bytes of its files.

    Raises:
        OSError: no space, or no permission. Also whatever `fill` raises. The partial checkpoint is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_scratch(folder)
    final = folder / f"step-{step:08d}"
    partial, old = folder / f".{final.name}.partial", folder / f".{final.name}.old"
    try:
        partial.mkdir()
        fill(partial)
        files = {name: _summary(partial / name) for name in _files(partial)}
        manifest = {"format": FORMAT, "step": step, "written_at": time.time(), "facts": facts, "files": files}
        _write_flushed(partial / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        # The files, and the folders too: the entry of a new file is in its folder.
        for each in (partial, *(path for path in partial.rglob("*"))):
            _flush(each)
    except BaseException:  # KeyboardInterrupt, too: half a checkpoint may take gigabytes
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if final.exists():  # a folder that is not empty cannot be replaced by a rename
        final.rename(old)
    partial.rename(final)
    _flush(folder)  # the rename itself
    shutil.rmtree(old, ignore_errors=True)
    return final, sum(int(file["bytes"]) for file in files.values())


def newest(folder: Path, warn: Callable[[str], None]) -> StoredCheckpoint | None:
    """The newest complete checkpoint; None if there is none. Calls `warn` with a message for each that is skipped."""
    for _, path in sorted(_checkpoints(folder), reverse=True):
        try:
            return check(path)
        except Damaged as error:
            warn(f"skipping the checkpoint {path}: {error}")
    return None


def check(path: Path) -> StoredCheckpoint:
    """Read every byte of a checkpoint and compare it with the manifest.

    Raises:
        Damaged: a file is missing, added, or different.
    """
    manifest = _manifest(path)
    wanted: dict[str, dict[str, Any]] = manifest["files"]
    for name in sorted(set(wanted) | set(_files(path))):
        if name not in wanted:
            raise Damaged(f"{name} is not in its manifest")
        try:
            got = _summary(path / name)
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror}); wanted {_summary_text(wanted[name])}") from None
        if got != wanted[name]:
            raise Damaged(f"{name} has {_summary_text(got)}; wanted {_summary_text(wanted[name])}")
    return StoredCheckpoint(path, manifest["step"], manifest["facts"])


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending, without verifying them."""
    return sorted(step for step, _ in _checkpoints(folder))


def retain(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for _, path in sorted(_checkpoints(folder))[:-keep]:
        doomed = path.with_name(f".{path.name}.old")
        path.rename(doomed)  # or a process killed while it deletes would leave half a checkpoint
        shutil.rmtree(doomed, ignore_errors=True)


def _checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            yield int(match[1]), path


def _remove_scratch(folder: Path) -> None:
    for path in folder.iterdir():
        if _SCRATCH.fullmatch(path.name):
            shutil.rmtree(path)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error.strerror}), so it was not finished") from None
    except ValueError as error:
        raise Damaged(f"{MANIFEST} is no JSON ({error})") from None
    # Checked by exact type, since True is an int to isinstance.
    wanted = {"format": int, "step": int, "facts": dict, "files": dict}
    if not isinstance(manifest, dict) or any(type(manifest.get(key)) is not kind for key, kind in wanted.items()):
        raise Damaged(f"{MANIFEST} lacks one of {', '.join(wanted)}")
    if manifest["format"] != FORMAT:
        raise Damaged(f"{MANIFEST} is of format {manifest['format']}; this version reads {FORMAT}")
    # A copied or renamed folder would be taken for another step.
    if path.name != f"step-{manifest['step']:08d}":
        raise Damaged(f"{MANIFEST} is of step {manifest['step']}")
    return manifest


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(name for path in paths if (name := path.relative_to(folder).as_posix()) != MANIFEST)


def _summary(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, as the manifest has them."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _summary_text(file: dict[str, Any]) -> str:
    return f"{file['bytes']} bytes with SHA-256 {str(file['sha256'])[:16]}"


def _write_flushed(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
