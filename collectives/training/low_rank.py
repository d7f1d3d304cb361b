"""Gradients as products of two thin matrices: PowerSGD (Vogels, Karimireddy and Jaggi 2019, algorithms 1 and 2).

For a matrix M of n x m, the gradient plus the residual, and Q of m x r from the step before:

    P = mean of M Q over the ranks, then its columns made orthonormal
    Q = mean of M^T P over the ranks
    the gradient on all ranks is P Q^T; the new residual is M - P Q^T

So (n + m) r numbers travel instead of n m. Vectors, and matrices that would not get smaller, travel whole, in one
message with the bucket's P.

The message with Q can only be sent when P is back. All ranks must start ops in the same order, but the P of several
buckets come back in an order that differs between ranks. So no Q is sent from a callback: the thread of the backward
pass sends all of them, bucket by bucket, after the last bucket's P. The messages with P overlap with backward, those
with Q do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from collectives.backend.staging import used_on_this_stream
from collectives.backend.untraced import untraced
from collectives.backend.work import Promise
from collectives.errors import UsageError
from collectives.training.error_feedback import Bucket, check_names

RANK = 4


@dataclass
class _InFlight:
    """A bucket between its two messages.

    Attributes:
        whole: gradients that travel whole.
        matrices: each M; a view of the bucket's residual, so that what remains of it after the step is the residual.
        targets: where each matrix's gradient goes; views of the bucket.
        names: of the matrices' parameters.
        message: the whole gradients, then each P.
        work: the first all-reduce.
        done: of the bucket's vector, settled when that has its result.
    """

    bucket: Bucket
    done: Promise
    whole: list[Tensor] = field(default_factory=list)
    matrices: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    message: Tensor = field(default_factory=lambda: torch.empty(0))
    work: Any = None


@untraced
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
        self._in_flight: list[_InFlight] = []

    def begin_step(self) -> None:
        """Drop what a backward pass that failed has left behind."""
        self._in_flight = []

    def reduce(self, bucket: Bucket, residual: Tensor) -> Promise:
        """Start the first message of a bucket; a promise of the bucket's averaged gradients.

        Args:
            residual: float32, laid out as `bucket.flat`; updated in place.
        """
        flight = _InFlight(bucket, Promise(bucket.flat))
        parts = zip(bucket.parameters, bucket.split(bucket.flat), bucket.split(residual), strict=True)
        for parameter, gradient, left_out in parts:
            if _gets_smaller(parameter):
                left_out.add_(gradient)  # the residual's memory holds M until `_finish`
                flight.matrices.append(left_out.flatten(1))
                flight.targets.append(gradient.flatten(1))
                flight.names.append(self._names[parameter])
            else:
                flight.whole.append(gradient)
        products = [
            matrix @ self._basis(name, matrix) for name, matrix in zip(flight.names, flight.matrices, strict=True)
        ]
        flight.message = torch.cat([part.reshape(-1) for part in (*flight.whole, *products)])
        flight.work = self._average(flight.message)
        self._in_flight.append(flight)
        return flight.done

    def end_step(self) -> None:
        """Send the second messages, after the last bucket; waits for the first ones.

        Raises:
            CollectiveError: a first message failed.
        """
        started, self._in_flight = self._in_flight, []
        for each in started:
            self._send_second_message(each)

    def _send_second_message(self, flight: _InFlight) -> None:
        # In the order of the buckets, on every rank, whichever P came back first.
        flight.work.wait()
        sizes = [gradient.numel() for gradient in flight.whole]
        sizes += [len(matrix) * _columns(matrix) for matrix in flight.matrices]
        parts = torch.split(flight.message, sizes)
        for gradient, part in zip(flight.whole, parts, strict=False):  # the whole gradients come first
            gradient.copy_(part.view(gradient.shape))
        if not flight.matrices:
            flight.done.settle()
            return
        # All ranks orthonormalise the same mean, so the columns need not be sent.
        pairs = zip(parts[len(flight.whole) :], flight.matrices, strict=True)
        columns = [torch.linalg.qr(product.view(len(matrix), -1)).Q for product, matrix in pairs]
        bases = [matrix.T @ column for matrix, column in zip(flight.matrices, columns, strict=True)]
        message = torch.cat([basis.reshape(-1) for basis in bases])

        def arrived() -> None:
            means = torch.split(message, [basis.numel() for basis in bases])
            shaped = [mean.view(basis.shape) for mean, basis in zip(means, bases, strict=True)]
            used_on_this_stream(columns)  # those of the message are known to the future
            self._finish(flight, columns, shaped)

        flight.done.follow(self._average(message), arrived)

    def _finish(self, flight: _InFlight, columns: list[Tensor], bases: list[Tensor]) -> None:
        """Write P Q^T to the bucket and leave M - P Q^T in the residual."""
        each = zip(flight.names, flight.matrices, flight.targets, columns, bases, strict=True)
        for name, matrix, target, column, basis in each:
            self._bases[name] = basis  # a warm start: with it one power iteration for each step is enough
            torch.matmul(column, basis.T, out=target)
            matrix.sub_(target)

    def _basis(self, name: str, matrix: Tensor) -> Tensor:
        """Q of the step before; at first random, seeded by the parameter's position, so the same on all ranks."""
        if name not in self._bases:
            generator = torch.Generator().manual_seed(self._order[name])
            random = torch.randn(matrix.shape[1], _columns(matrix), generator=generator)
            self._bases[name] = random.to(matrix.device)
        return self._bases[name]

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of each Q by parameter name."""
        return {name: basis.clone() for name, basis in self._bases.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace each Q by that which `state_dict` returned.

        Raises:
            UsageError: names or shapes are not this model's.
        """
        check_names("low-rank bases", state, self._names, shapes=False)
        shapes = {name: tuple(parameter.shape) for parameter, name in self._names.items()}
        for name, basis in state.items():
            rows = math.prod(shapes[name][1:])
            if len(basis) != rows:
                raise UsageError(f"load_state_dict: the low-rank basis of {name} has {len(basis)} rows; wanted {rows}")
        self._bases = {name: basis.clone() for name, basis in state.items()}


def _gets_smaller(parameter: Tensor) -> bool:
    """Whether P and Q together have fewer elements than the gradient."""
    if parameter.dim() < 2:
        return False
    matrix = parameter.detach().flatten(1)
    return sum(matrix.shape) * _columns(matrix) < matrix.numel()


def _columns(matrix: Tensor) -> int:
    rows, columns = matrix.shape
    return min(RANK, rows, columns)
