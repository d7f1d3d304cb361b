"""What was added to the logs of a run since the last look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.record.run_dir import RunDir


class Tail:
    """Whole lines that are added to a file, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new_lines(self, *, rest: bool = False) -> list[str]:
        """Lines since the last call; with `rest`, a last one without its end, too."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text if rest else text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()


class LogTails:
    """New lines of the logs of some ranks."""

    def __init__(self, run_dir: RunDir, ranks: Sequence[int]) -> None:
        self._tails = {rank: Tail(run_dir.log(rank)) for rank in ranks}

    def new_lines(self, *, rest: bool = False) -> Iterator[tuple[int, str]]:
        """Each line with its rank."""
        for rank, tail in self._tails.items():
            yield from ((rank, line) for line in tail.new_lines(rest=rest))
