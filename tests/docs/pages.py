"""The pages of the documentation and the code blocks in them.

A comment on the line before a block, `<!-- not run: needs root -->`, says why the tests do not run its commands.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests.paths import REPOSITORY

README = REPOSITORY / "README.md"
PAGES = (*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md")))

_BLOCK = re.compile(
    r"^(?: *<!-- not run: (?P<excuse>.+?) -->\n)?(?P<indent> *)```(?P<language>\w+)[^\n]*\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A code block; `line` counts from 1, `excuse` is None if its commands can run."""

    page: Path
    line: int
    language: str
    text: str
    excuse: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The words of each command; those joined by && are several."""
        found = []
        for line in self.text.replace("\\\n", " ").splitlines():
            command: list[str] = []
            for word in shlex.split(line, comments=True):
                if word == "&&":
                    found.append(command)
                    command = []
                else:
                    command.append(word)
            found.append(command)
        return [command for command in found if command]


def blocks(language: str) -> list[Block]:
    """All blocks of a language, in the order of the pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            if match["language"] == language:
                line = text.count("\n", 0, match.start("language")) + 1
                found.append(Block(page, line, language, textwrap.dedent(match["text"]), match["excuse"]))
    return found
