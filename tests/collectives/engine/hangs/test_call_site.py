"""Which line of the user's called, from whatever depth."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collectives.engine.hangs.call_site import CallSite, call_site, call_site_of_thread, describe, main_stack

HERE = "test_call_site.py"


def through(depth: int, name: str) -> Callable[[Callable[[], Any]], Any]:
    """A function of a package called `name` that calls what it is given from `depth` frames of its own."""
    names: dict[str, Any] = {"__name__": f"{name}.inner"}
    source = "def call(f, n):\n    return f() if n == 0 else call(f, n - 1)\n"
    exec(compile(source, f"{name}/inner.py", "exec"), names)
    return lambda f: names["call"](f, depth)


def user(depth: int, name: str = "torch") -> CallSite | None:
    found: CallSite | None = through(depth, name)(call_site)
    return found


def test_frames_of_torch_and_ours_are_passed_over() -> None:
    for depth in (0, 3, 3, 12, 2, 40):
        found = describe(user(depth))
        assert found.endswith(" in through.<locals>.<lambda>"), found
        assert f"{HERE}:" in found
    assert describe(user(3, "somebodys")).startswith("somebodys/inner.py:2 in call")


def test_a_thread_without_the_users_frames_has_no_line() -> None:
    found = []
    call = through(2, "torch")
    inner = call.__closure__[1].cell_contents["call"]  # type: ignore[index]
    thread = threading.Thread(target=inner, args=(lambda: found.append(None), 2))
    thread.start()
    thread.join()
    assert describe(None) == "a line that is not known"
    assert call_site_of_thread(thread.ident or 0) is None


def test_the_main_threads_stack_ends_where_it_is() -> None:
    stacks: list[str] = []
    thread = threading.Thread(target=lambda: stacks.append(main_stack()))
    thread.start()
    thread.join()
    assert any(HERE in line and "thread." in line for line in stacks[0].splitlines()), stacks


def test_a_working_directory_that_was_removed_hides_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert f"{HERE}:" in describe(user(3))
    assert HERE in main_stack()


def test_a_long_line_of_code_hides_no_place_in_the_stack(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    path.write_text("def wait(call):\n    x = call(), '" + "\N{GRINNING FACE}" * 5000 + "'\n    return x[0]\n", "utf-8")
    names: dict[str, Any] = {}
    exec(compile(path.read_text("utf-8"), str(path), "exec"), names)
    stack = names["wait"](main_stack)
    assert f"{path}:2 in wait: x = call(), '\N{GRINNING FACE}" in stack
    assert f"{HERE}:" in stack
