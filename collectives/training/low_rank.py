"""Gradients as products of two thin matrices: PowerSGD (Vogels, Karimireddy and Jaggi 2019, algorithms 1 and 2).

For a gradient M of n x m, with what was left out before added to it, and Q of m x r from the step before:

    P = mean of M Q over the ranks, its columns made orthonormal
    Q = mean of M^T P
    P Q^T is the gradient that all ranks get; M - P Q^T is left out and added next time

So (n + m) r numbers travel instead of n m. Vectors, and matrices that would not get smaller, travel as they are, in one
message with the bucket's P.

A Q can only be sent when its P is back. Ops of a group must come in the same order on all ranks, and P come back at
times of their own, so all Q are sent by the thread of the backward pass, after the last bucket's P. What lies before
that overlaps with backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from collectives.errors import UsageError
from collectives.training.error_feedback import Bucket, check_names

RANK = 4
Future = torch.futures.Future


@dataclass
class _Underway:
    """A bucket between its two messages.

    Attributes:
        wholes: gradients that travel as they are.
        owed: what each matrix should have had; views of the bucket's residual.
        targets: where each matrix's gradient goes; views of the bucket.
        names: of the matrices' parameters.
        message: wholes, then each P.
        work: the first all-reduce.
        done: set when the bucket has its result.
    """

    bucket: Bucket
    wholes: list[Tensor] = field(default_factory=list)
    owed: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    message: Tensor = field(default_factory=lambda: torch.empty(0))
    work: Any = None
    done: Future[None] = field(default_factory=Future)
    error: BaseException | None = None


class LowRank:
    """The codec of one model.

    Args:
        names: of the model's parameters.
        average: begins an all-reduce with op avg of a vector, in place, and returns its Work.
    """

    def __init__(self, names: Mapping[Tensor, str], average: Callable[[Tensor], Any]) -> None:
        self._names, self._average = names, average
        self._order = {name: position for position, name in enumerate(names.values())}
        self._bases: dict[str, Tensor] = {}
        self._underway: list[_Underway] = []

    def begin_step(self) -> None:
        """Forget what a backward pass that failed has left."""
        self._underway = []

    def reduce(self, bucket: Bucket, residual: Tensor) -> Future[Tensor]:
        """Begin to average the bucket: the first message."""
        under = _Underway(bucket)
        gradients, owed = bucket.split(bucket.flat), bucket.split(residual)
        for parameter, gradient, left_out in zip(bucket.parameters, gradients, owed, strict=True):
            if _gets_smaller(parameter):
                left_out.add_(gradient)
                under.owed.append(left_out.flatten(1))
                under.targets.append(gradient.flatten(1))
                under.names.append(self._names[parameter])
            else:
                under.wholes.append(gradient)
        products = [owes @ self._basis(name, owes) for name, owes in zip(under.names, under.owed, strict=True)]
        under.message = torch.cat([part.reshape(-1) for part in (*under.wholes, *products)])
        under.work = self._average(under.message)
        self._underway.append(under)
        return under.done.then(lambda _: _result(under))

    def end_step(self) -> None:
        """Send the second messages, when no bucket is left; waits for the first ones.

        Raises:
            CollectiveError: a first message failed.
        """
        started, self._underway = self._underway, []
        for each in started:
            self._second_message(each)

    def _second_message(self, under: _Underway) -> None:
        under.work.wait()
        sizes = [whole.numel() for whole in under.wholes] + [len(owes) * _columns(owes) for owes in under.owed]
        parts = torch.split(under.message, sizes)
        for whole, part in zip(under.wholes, parts, strict=False):
            whole.copy_(part.view(whole.shape))
        if not under.owed:
            under.done.set_result(None)
            return
        products = parts[len(under.wholes) :]
        pairs = zip(products, under.owed, strict=True)
        columns = [torch.linalg.qr(product.view(len(owes), -1)).Q for product, owes in pairs]
        bases = [owes.T @ column for owes, column in zip(under.owed, columns, strict=True)]
        message = torch.cat([basis.reshape(-1) for basis in bases])

        def arrived(future: Future[list[Tensor]]) -> None:
            try:
                future.value()
                means = torch.split(message, [basis.numel() for basis in bases])
                each = zip(under.names, under.owed, under.targets, columns, means, bases, strict=True)
                for name, owes, target, column, mean, basis in each:
                    self._bases[name] = mean.view(basis.shape)
                    torch.matmul(column, self._bases[name].T, out=target)
                    owes.sub_(target)
            except BaseException as error:
                under.error = error
            under.done.set_result(None)

        self._average(message).get_future().then(arrived)

    def _basis(self, name: str, matrix: Tensor) -> Tensor:
        """Q of the step before; at first random, and the same on all ranks."""
        if name not in self._bases:
            generator = torch.Generator().manual_seed(self._order[name])
            random = torch.randn(matrix.shape[1], _columns(matrix), generator=generator)
            self._bases[name] = random.to(matrix.device)
        return self._bases[name]

    def state_dict(self) -> dict[str, Tensor]:
        """Q by the parameter's name."""
        return {name: basis.clone() for name, basis in self._bases.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            UsageError: of another model.
        """
        check_names("low-rank bases", state, self._names, shapes=False)
        shapes = {name: tuple(parameter.shape) for parameter, name in self._names.items()}
        for name, basis in state.items():
            rows = math.prod(shapes[name][1:])
            if len(basis) != rows:
                raise UsageError(f"load_state_dict: the low-rank basis of {name} has {len(basis)} rows; wanted {rows}")
        self._bases = {name: basis.clone() for name, basis in state.items()}


def _gets_smaller(parameter: Tensor) -> bool:
    if parameter.dim() < 2:
        return False
    matrix = parameter.detach().flatten(1)
    return sum(matrix.shape) * _columns(matrix) < matrix.numel()


def _columns(matrix: Tensor) -> int:
    rows, columns = matrix.shape
    return min(RANK, rows, columns)


def _result(under: _Underway) -> Tensor:
    if under.error is not None:
        raise under.error
    return under.bucket.flat
