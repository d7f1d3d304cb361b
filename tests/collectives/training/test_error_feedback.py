"""What a codec owes to a parameter follows it from bucket to bucket."""

from __future__ import annotations

import pytest
import torch

from collectives.errors import UsageError
from collectives.training.error_feedback import Bucket, Residuals

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


def test_a_residual_is_settled_once_when_circumstances_change() -> None:
    names, bucket = model_of_one()
    residuals = Residuals(names)
    residuals.settle(bucket, "int8")
    assert float(bucket.flat.sum()) == 0, "nothing was owed"
    residuals.vector(bucket, torch.device("cpu")).fill_(2.0)
    residuals.settle(bucket, "int8")
    assert float(bucket.flat.sum()) == 0, "the codec adds it"
    residuals.settle(bucket, "int4")
    assert bucket.flat.tolist() == [2.0] * 3
    assert float(residuals.vector(bucket, torch.device("cpu")).abs().sum()) == 0
    residuals.settle(bucket, "none")
    assert bucket.flat.tolist() == [2.0] * 3


def test_a_restored_state_stays_owed_in_its_first_step() -> None:
    names, bucket = model_of_one()
    residuals = Residuals(names)
    residuals.load_state_dict({"w": torch.full((3,), 2.0)})
    residuals.settle(bucket, "int8")
    residuals.end_step()
    residuals.settle(bucket, "int8")
    assert float(bucket.flat.abs().sum()) == 0
    assert residuals.vector(bucket, torch.device("cpu")).tolist() == [2.0] * 3
    residuals.settle(bucket, "none")
    assert bucket.flat.tolist() == [2.0] * 3


def model_of_one() -> tuple[dict[torch.Tensor, str], Bucket]:
    parameter = torch.nn.Parameter(torch.zeros(3))
    return {parameter: "w"}, Bucket(0, True, [parameter], torch.zeros(3))
