"""Reads the folder of a run. Any file may be missing, or end in the middle of a line: a run that is going on, that
crashed, or that never reached its first step has a report, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import ReportError
from launcher.record.events import Event, Noted, from_json
from launcher.record.run_dir import RunDir, last_traceback

LAST_WORDS_BYTES = 64 * 1024
"""Read from the end of each log, which may have gigabytes."""


@dataclass(frozen=True)
class RunRecord:
    """The files of a run folder. None: there is no such file.

    Attributes:
        name: of the folder, "<name of the job>-<id>".
        config: text of config.yaml.
        logs: the end of each rank's log, for ranks that wrote something.
        traces: names of the trace files.
    """

    name: str
    config: str | None
    plan: dict[str, Any] | None
    summary: dict[str, Any] | None
    logs: dict[int, str]
    traces: tuple[str, ...]


def read(folder: Path) -> RunRecord:
    """Read everything but the events.

    Raises:
        ReportError: it is not the folder of a run, or a file in it is not what the launcher writes.
    """
    run = RunDir.of(folder)
    if not run.config.is_file():
        found = "a file" if folder.is_file() else "no config.yaml in it" if folder.is_dir() else "nothing"
        raise ReportError(
            f"{folder}: found {found}; wanted the folder of a run, such as runs/my-job-20260131-120000-ab12, "
            "whose name `launcher submit` prints"
        )
    return RunRecord(
        name=run.path.name,
        config=run.config.read_text(encoding="utf-8", errors="replace"),
        plan=_object(run.plan),
        summary=_object(run.summary),
        logs=dict(sorted(_logs(run.logs))),
        traces=tuple(sorted(path.name for path in run.traces.glob("*") if path.is_file())),
    )


def events(folder: Path) -> Iterator[Event]:
    """Read events.jsonl line by line. A last line that is still being written is skipped. An event of an unknown kind,
    such as one of a newer version, becomes a note.

    Raises:
        ReportError: a line is not an event.
    """
    path = RunDir.of(folder).events
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield _event(json.loads(line))
            except json.JSONDecodeError as error:
                raise ReportError(f"{path}, line {number}: not JSON: {error.msg}; wanted an event") from None
            except ValueError as error:
                raise ReportError(f"{path}, line {number}: {error}") from None


def _event(line: Any) -> Event:
    """
    Raises:
        ValueError: it is not an event, not even one of an unknown kind.
    """
    known = {kind.__name__ for kind in Event.__subclasses__()}
    match line:
        case {"event": str(kind), "rank": int(rank), "at": int(at) | float(at), **values} if kind not in known:
            return Noted(rank, float(at), {kind: values})
    return from_json(line)


def _object(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(
            f"{path}: not JSON: {error}; the launcher writes it, so another program has changed it"
        ) from None
    if not isinstance(found, dict):
        raise ReportError(f"{path}: got {type(found).__name__}; wanted an object, as the launcher writes it")
    return found


def _logs(folder: Path) -> Iterator[tuple[int, str]]:
    for path in folder.glob("rank-*.log"):
        rank = path.stem.removeprefix("rank-")
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - LAST_WORDS_BYTES))
            text = log.read().decode("utf-8", errors="replace")
        if rank.isdigit() and text.strip():
            yield int(rank), last_traceback(text)
