"""A sample of the random mix; ``python -m tests.random_collectives`` runs as many as are wanted."""

from __future__ import annotations

import pytest

from tests.processes import run
from tests.random_collectives import worker


@pytest.mark.parametrize("backend", ["narrowgauge", "gloo"])
def test_random_mix_agrees_with_the_oracle(backend: str) -> None:
    taken = run(worker, 4, backend, 0, 150, 42, deadline_s=280)
    assert all(count > 50 for count in taken)


def test_three_ranks() -> None:
    run(worker, 3, "narrowgauge", 0, 60, 43, deadline_s=280)
