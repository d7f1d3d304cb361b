"""Starts a module of ours where the user's project may have a module of the same name.

    python FOLDER/launcher/bootstrap.py [--beside FOLDER] MODULE [ARGS...]      as `python -m MODULE [ARGS...]`

`python -m` puts the working directory in front of the path, and Ray puts it on the path of every process of a job, so a
`launcher.py` or a `collectives/` there would be found instead of ours. Three things prevent that:

* `pin` answers imports of our two packages from one folder, whatever the path says.
* Where user code will run (`--beside`, its folder) and has such a module within reach, the name is the user's in
  `sys.modules`, as in any other Python. Our package is loaded under an alias. Our sources name each other by their real
  names, so the modules of ours get an `__import__` of their own that translates; nobody else's is touched.
* A process of Ray's imports the class of an actor by name before any code of ours could pin. `stand_in` makes one that
  travels by value, pins, and only then imports the original.

This file needs nothing but the standard library. A copy of it is sent to clusters, see `remote/packing.py`.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PACKAGES = ("collectives", "launcher")
ALIAS = "_narrowgauge_"
_COMPILED = "collectives.engine.compiled."
_LANDMARKS = (os.path.join("collectives", "version.py"), os.path.join("launcher", "run", "worker.py"))


def command(module: str, *arguments: str, beside: str | None = None) -> list[str]:
    """The command line that runs a module of ours on this machine.

    Args:
        beside: the folder that comes first on the path of the user code that the module is going to run; None: it runs
            none.
    """
    user = ["--beside", beside] if beside is not None else []
    return [sys.executable, "-u", os.path.abspath(__file__), *user, module, *arguments]


def pin(home: str | None = None, taken: Sequence[str] = ()) -> dict[str, Any] | None:
    """Have this process find our packages in one folder.

    Args:
        home: the folder; None: the first on the path that holds them.
        taken: those of `PACKAGES` whose names belong to the user; ours are loaded as `_narrowgauge_NAME`.

    Returns:
        What code of ours needs as `__builtins__`; None: the usual.

    Raises:
        ModuleNotFoundError: they are nowhere.
    """
    names = {name: ALIAS + name if name in taken else name for name in PACKAGES}
    for known in sys.meta_path:  # Ray uses a process for many tasks, each of which pins
        if getattr(known, "narrowgauge_names", None) == names:
            return known.builtins  # type: ignore[attr-defined,no-any-return]
    finder = _Finder(home or _search(), names)
    sys.meta_path.insert(0, finder)
    return finder.builtins


def taken_names(beside: str) -> list[str]:
    """Those of `PACKAGES` that are modules of the user's for code in the folder `beside`.

    The working directory does not count: Ray adds it to the path, and a script elsewhere in the project should find the
    same on a cluster as on one machine.
    """
    here = os.path.realpath(os.getcwd())
    path = [beside, *(entry for entry in sys.path if os.path.realpath(entry) != here)]
    found = {name: PathFinder.find_spec(name, path) for name in PACKAGES}
    return [
        name
        for name, spec in found.items()
        if spec is not None
        and spec.origin is not None  # a folder without __init__.py yields to a package further down the path
        and not _is_ours(
            spec.origin
        )  # nor is another copy of ours: two engines in one process would not know each other
    ]


def stand_in(target: Any) -> Any:
    """A function or class to be given to Ray in place of one of ours; a class's public methods are forwarded.

    This module has to be registered with `ray.cloudpickle.register_pickle_by_value`.
    """
    module, name = target.__module__, target.__qualname__

    def original() -> Any:
        pin()
        return getattr(importlib.import_module(module), name)

    if not isinstance(target, type):
        return lambda *arguments: original()(*arguments)

    def create(self: Any) -> None:
        self._original = original()()

    def forwarded(method: str) -> Callable[..., Any]:
        return lambda self, *arguments: getattr(self._original, method)(*arguments)

    public = [method for method, value in vars(target).items() if callable(value) and not method.startswith("_")]
    return type(target.__name__, (), {"__init__": create, **{method: forwarded(method) for method in public}})


class _Finder:
    """Finds our packages in their folder, under their names or aliases, before anybody else is asked."""

    def __init__(self, home: str, names: Mapping[str, str]) -> None:
        self._home = home
        self._names = self.narrowgauge_names = dict(names)
        self._packages = {name: package for package, name in names.items()}
        aliased = any(package != name for package, name in names.items())
        self.builtins = {**vars(builtins), "__import__": self._import} if aliased else None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top, dot, rest = fullname.partition(".")
        package = self._packages.get(top)
        if package is None:
            return None
        if dot:
            spec = PathFinder.find_spec(fullname, path)
        else:
            folder = os.path.join(self._home, package)
            spec = importlib.util.spec_from_file_location(
                fullname, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
            )
        if spec is not None and spec.loader is not None and self.builtins is not None:
            load = spec.loader.exec_module

            def load_translated(module: ModuleType) -> None:
                vars(module)["__builtins__"] = self.builtins
                if (known_as := package + dot + rest).startswith(_COMPILED):
                    # Machine code in Numba's cache names the module that it was compiled from, and Numba imports it.
                    sys.modules.setdefault(known_as, module)
                load(module)

            spec.loader.exec_module = load_translated  # type: ignore[method-assign]
        return spec

    def _import(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
    ) -> ModuleType:
        """`__import__` for modules of ours: what they call `collectives` may be loaded under an alias."""
        top, dot, rest = name.partition(".")
        alias = self._names.get(top, top) if level == 0 else top
        return builtins.__import__(alias + dot + rest, globals, locals, fromlist or (), level)


def _search() -> str:
    """The folder that holds our packages, by this process's path and, for editable installations, its other finders."""
    folders = [os.path.abspath(entry) for entry in sys.path]
    for finder in sys.meta_path:
        spec = finder.find_spec("launcher", None)
        if spec is not None and spec.origin is not None:
            folders.append(os.path.dirname(os.path.dirname(spec.origin)))
    for folder in folders:
        if _holds_ours(folder):
            return folder
    raise ModuleNotFoundError(f"No module named 'launcher' that is narrowgauge's, in {sys.executable}", name="launcher")


def _is_ours(origin: str) -> bool:
    """Whether a module's file is the `__init__.py` of one of our packages, of whichever installation."""
    folder, file = os.path.split(os.path.realpath(origin))
    return file == "__init__.py" and _holds_ours(os.path.dirname(folder))


def _holds_ours(folder: str) -> bool:
    return all(os.path.isfile(os.path.join(folder, landmark)) for landmark in _LANDMARKS)


def _main() -> None:
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder of this file, which is no place to import from
    words = sys.argv[1:]
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    home = own if _holds_ours(own) else _search()
    beside = words[1] if words[0] == "--beside" else None
    module, *arguments = words[2:] if beside is not None else words
    taken = taken_names(beside) if beside is not None else []
    ours = pin(home, taken)
    sys.argv = [__file__, *arguments]
    name = ALIAS + module if module.partition(".")[0] in taken else module
    # Without alter_sys: `__main__` stays this file, which a spawned child of multiprocessing can import without harm.
    runpy.run_module(name, init_globals={"__builtins__": ours} if ours else None, run_name="__main__")


if __name__ == "__main__":
    _main()
