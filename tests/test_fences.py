"""Who may import what, read from the source itself, and checked once more by running it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = sorted(path for package in ("collectives", "launcher") for path in (REPOSITORY / package).rglob("*.py"))
PLAIN = (
    "__main__ auto_codec balance batch_shares canonical codec cost errors explain forest options pace "
    "plan_text planner rows shares simulate sizes specification topology version "
    "bench/__init__ bench/command bench/limit bench/plot bench/report "
    "probe/__init__ probe/cache probe/infer probe/lead probe/measure probe/rounds"
)
WITHOUT_TORCH = (
    "collectives/engine/",
    "collectives/algorithms/",
    *(f"collectives/{name}.py" for name in PLAIN.split()),
)


def imported(path: Path) -> Iterator[str]:
    """Top-level names of all that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: a relative import"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_stay_inside_the_fences(path: Path) -> None:
    name = path.relative_to(REPOSITORY).as_posix()
    found = set(imported(path))
    if name.startswith("collectives/"):
        assert not found & {"ray", "launcher"}
    if name.startswith(WITHOUT_TORCH):
        assert "torch" not in found
    if name not in ("launcher/cluster.py", "launcher/jobs.py", "launcher/ray_metrics.py"):
        assert "ray" not in found
    if name != "launcher/config.py":
        assert "yaml" not in found
    if not name.startswith("collectives/engine/"):
        assert "numba" not in found


def test_every_fenced_module_exists() -> None:
    assert all((REPOSITORY / name).exists() for name in WITHOUT_TORCH)


def run(script: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout


def test_importing_collectives_does_not_import_numba() -> None:
    assert run("import sys, collectives; print('numba' in sys.modules)") == "False\n"


def test_explain_needs_neither_torch_nor_numba() -> None:
    script = (
        "import sys; sys.modules.update(torch=None, numba=None, ray=None)\n"
        "from collectives.__main__ import main; sys.exit(main(['explain', '--hosts', '4']))"
    )
    assert "forest: direct" in run(script)


def test_compiled_code_is_stamped_with_all_files_that_it_comes_from() -> None:
    """Numba would go on using yesterday's machine code after a change of a file that is missing here."""
    from collectives.engine.jit import COMPILED

    folder = REPOSITORY / "collectives" / "engine"
    compiled = {path.stem for path in folder.glob("*.py") if "@jit\n" in path.read_text(encoding="utf-8")}
    assert compiled <= set(COMPILED)
