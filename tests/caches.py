"""Caches for tests: new ones, which share compiled code with the user's."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from collectives.caches import cache_folder, private_folder


def new_cache(folder: Path) -> Path:
    """Prepare `folder` as $XDG_CACHE_HOME: empty but for compiled code, which is that of the cache in force.

    Compiling the engine takes a minute of CPU in each process that finds nothing compiled. Compiled code is kept by a
    digest of its sources, so it is never that of another version; links and inventories are what tests must not see.
    """
    with suppress(OSError):  # no home, or one that cannot be written: the engine is compiled in the new cache
        compiled = cache_folder("compiled", make=True)
        private_folder(folder / "narrowgauge")
        (folder / "narrowgauge" / "compiled").symlink_to(compiled.resolve(), target_is_directory=True)
    return folder
