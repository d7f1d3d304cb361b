"""Who may import what, read from the sources, and checked once more by running them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

ORDER = {
    "collectives": [
        *("__main__", "__init__", "bench", "training", "backend", "engine", "membership", "probe", "transport"),
        *("planning", "options", "schedule", "topology", "units", "caches", "errors", "version"),
    ],
    "launcher": [
        *("cli", "commands", "submit", "remote", "lab", "examples", "run", "checkpoint", "report", "monitor"),
        *("planning", "record", "config", "inventory", "progress", "schema", "units", "errors", "bootstrap"),
        "__init__",
    ],
}
"""From the top down: a file imports what is in its own folder or further down."""

DOORS = {
    "collectives": "what a script may call",
    "collectives.bench": "launcher bench runs it on a job's workers",
    "collectives.caches": "where measurements are kept",
    "collectives.errors": "",
    "collectives.options": "names of backends and codecs, checks of their values",
    "collectives.planning": "predicted seconds and bounds for the search of places",
    "collectives.probe": "launcher probe runs it on a job's workers",
    "collectives.schedule.codec": "ratios of codecs for forecasts",
    "collectives.topology": "the links of an inventory or a lab",
    "collectives.training": "shares by speed, and attaching an unmodified script's models",
    "collectives.transport.tcp": "the identity of a machine",
    "collectives.units": "",
    "collectives.version": "",
}
"""All of `collectives` that `launcher` enters by, and what for."""

RAY = ("launcher/run/cluster.py", "launcher/remote/ray_jobs.py", "launcher/monitor/prometheus.py")
NUMBA = "collectives/engine/compiled/"
YAML = "launcher/config/job_file.py"
TORCH_DISTRIBUTED = ("collectives/backend/", "collectives/training/", "collectives/probe/command.py", "launcher/")
WITHOUT_TORCH = (
    "collectives/engine/",
    "collectives/transport/",
    "collectives/planning/",
    "collectives/schedule/",
    "collectives/topology/",
    *(f"collectives/training/{name}.py" for name in ("apportion", "auto_codec", "rebalance", "step_timer")),
    *(f"collectives/bench/{name}.py" for name in ("__init__", "command", "limit", "plot", "report")),
    *(f"collectives/probe/{name}.py" for name in ("__init__", "cache", "infer", "lead", "measure", "rounds")),
    *(f"collectives/{name}.py" for name in ("__main__", "caches", "errors", "options", "units", "version")),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in ORDER for path in sorted((REPOSITORY / package).rglob("*.py"))}


@cache
def imports(module: str, typing: bool = True) -> frozenset[str]:
    """Full names of all that a module imports, wherever the import stands, for type checkers too if `typing`."""
    path, found = MODULES[module], set[str]()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not typing:
            nodes += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & set(MODULES)) or {node.module or ""}
        nodes += ast.iter_child_nodes(node)
    return frozenset(found - {module})


def floor(module: str) -> int:
    package, _, rest = module.partition(".")
    return ORDER[package].index(rest.split(".")[0] if rest else "__init__")


def file(module: str) -> str:
    return MODULES[module].relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("module", MODULES)
def test_imports_stay_inside_the_fences(module: str) -> None:
    name, found = file(module), imports(module)
    top = {each.split(".")[0] for each in found}
    if name.startswith("collectives/"):
        assert not top & {"ray", "launcher"}
    if name.startswith(WITHOUT_TORCH):
        assert "torch" not in top
    if not name.startswith(TORCH_DISTRIBUTED):
        assert not [each for each in found if each.startswith("torch.distributed")]
    if name not in RAY:
        assert "ray" not in top
    if name != YAML:
        assert "yaml" not in top
    if not name.startswith(NUMBA):
        assert not top & {"numba", "llvmlite"}


@pytest.mark.parametrize("module", [each for each in MODULES if each not in ORDER])
def test_imports_go_down(module: str) -> None:
    package = module.split(".")[0]
    own = [each for each in imports(module, typing=False) if each.startswith(package + ".")]
    assert not [each for each in own if floor(each) < floor(module)]


@pytest.mark.parametrize("package", ORDER)
def test_no_imports_in_a_circle(package: str) -> None:
    """Those for type checkers and those inside functions count: two files that need each other are one."""
    below = {
        module: {each for each in imports(module) if each in MODULES} - set(ORDER)
        for module in MODULES
        if module.startswith(package + ".")
    }
    while leaves := [module for module, needed in below.items() if not needed & set(below)]:
        for module in leaves:
            del below[module]
    assert not below


@pytest.mark.parametrize("module", [each for each in MODULES if each.startswith("launcher")])
def test_launcher_enters_collectives_by_its_doors(module: str) -> None:
    entered = {each for each in imports(module) if each.split(".")[0] == "collectives"}
    assert not [
        each
        for each in entered
        if not any(each == door or each.startswith(door + ".") for door in DOORS if door != "collectives")
        and each != "collectives"
    ]


@pytest.mark.parametrize("package", ORDER)
def test_a_folder_holds_more_than_one_file_and_a_package_few_flat_ones(package: str) -> None:
    folders = [folder for folder in (REPOSITORY / package).rglob("*") if folder.is_dir() and list(folder.glob("*.py"))]
    lonely = [folder for folder in folders if len(set(folder.glob("*.py")) - {folder / "__init__.py"}) < 2]
    assert not lonely
    assert len(list((REPOSITORY / package).glob("*.py"))) <= 9


def test_what_the_fences_name_exists() -> None:
    named = (*RAY, NUMBA, YAML, *TORCH_DISTRIBUTED, *WITHOUT_TORCH)
    assert not [name for name in named if not (REPOSITORY / name).exists()]
    assert not [door for door in DOORS if door not in MODULES]


def run(script: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout


def test_importing_collectives_brings_neither_numba_nor_torch() -> None:
    script = "import sys, collectives; print([name for name in ('numba', 'torch') if name in sys.modules])"
    assert run(script) == "[]\n"


def test_explain_needs_neither_torch_nor_numba() -> None:
    script = (
        "import sys; sys.modules.update(torch=None, numba=None, ray=None)\n"
        "from collectives.__main__ import main; sys.exit(main(['explain', '--hosts', '4']))"
    )
    assert "forest: direct" in run(script)


def compiled_from() -> Iterator[str]:
    """Modules of ours that compiled code takes values from, directly or not."""
    reached = [module for module in MODULES if file(module).startswith(NUMBA)]
    for module in reached:
        reached += [each for each in imports(module, typing=False) if each in MODULES and each not in reached]
    yield from reached


def test_compiled_code_is_stamped_with_all_files_that_it_comes_from() -> None:
    """Numba would go on using yesterday's machine code after a change of a file that is missing here."""
    from collectives.engine.compiled.jit import SOURCES

    stamped = {path.resolve() for path in SOURCES}
    without_values = {"collectives.caches", "collectives.errors", "collectives"}
    assert not [each for each in compiled_from() if each not in without_values and MODULES[each] not in stamped]
