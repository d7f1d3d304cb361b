"""What holds for all tests: none of them touches the links and machines that this user's cache remembers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.caches import new_cache


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For this process and all that it starts.

    Among pytest's own folders: one of `tempfile` would be removed by a forked child that ends as a process does.
    """
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(new_cache(tmp_path_factory.mktemp("cache")))
    yield
    del os.environ["XDG_CACHE_HOME"]
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before
