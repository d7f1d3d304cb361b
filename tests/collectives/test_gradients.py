"""What a codec owes to a parameter follows it from bucket to bucket."""

from __future__ import annotations

import pytest
import torch

from collectives.errors import UsageError
from collectives.gradients import Bucket, Residuals

CPU = torch.device("cpu")
A, B, C = torch.zeros(2, 3), torch.zeros(4), torch.zeros(1)
NAMES = {A: "a", B: "b", C: "c"}


def bucket(*parameters: torch.Tensor) -> Bucket:
    return Bucket(0, False, list(parameters), torch.zeros(sum(parameter.numel() for parameter in parameters)))


def test_repacked_buckets_keep_what_is_owed() -> None:
    residuals = Residuals(NAMES)
    residuals.vector(bucket(A, B), CPU).copy_(torch.arange(10.0))
    residuals.vector(bucket(C), CPU).fill_(50)
    assert residuals.vector(bucket(A, B), CPU).tolist() == list(range(10))
    assert residuals.vector(bucket(C, B), CPU).tolist() == [50, 6, 7, 8, 9]
    assert residuals.vector(bucket(A), CPU).tolist() == list(range(6))
    state = residuals.state_dict()
    assert {name: part.flatten().tolist() for name, part in state.items()} == {
        "a": [0, 1, 2, 3, 4, 5],
        "b": [6, 7, 8, 9],
        "c": [50],
    }
    residuals.vector(bucket(A), CPU).zero_()
    assert state["a"].sum() == 15  # a copy

    restored = Residuals(NAMES)
    restored.load_state_dict(state)
    assert restored.vector(bucket(B, A, C), CPU).tolist() == [6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 50]


def test_state_of_another_model() -> None:
    with pytest.raises(UsageError, match="residuals of d, which the model has no parameters for"):
        Residuals(NAMES).load_state_dict({"d": torch.zeros(1)})
