"""How long a rank computes for a step; shares of the batch and `codec="auto"` depend on it.

A step is timed from the start of forward to the moment when DDP has the last gradient. What follows, waiting for other
ranks, is left out: it depends on how fast those are.
"""

from __future__ import annotations

import statistics
from collections import deque
from time import perf_counter

from collectives.backend.meter import TRAINING

KEPT_STEPS = 20
COLD_STEPS = 1  # the first step allocates memory, and DDP repacks its buckets after it


class StepTimer:
    """Times of the last steps. Steps of several forward passes (gradient accumulation) count as a whole."""

    def __init__(self) -> None:
        self.steps = 0
        self._began: float | None = None
        self._forward_ended: float | None = None
        self._backward_s: deque[float] = deque(maxlen=KEPT_STEPS)
        self._samples_per_s: deque[float] = deque(maxlen=KEPT_STEPS)

    def forward_begins(self) -> None:
        if self._began is None:
            self._began = perf_counter()

    def forward_ended(self) -> None:
        self._forward_ended = perf_counter()

    def gradients_done(self, samples: float | None) -> None:
        """The last bucket is ready, so this rank's computation of the step is over.

        Args:
            samples: the weight that was set; None if weights are not used, which counts steps instead of samples.
        """
        now = perf_counter()
        TRAINING["steps"] += 1
        TRAINING["samples"] += samples or 0.0
        TRAINING["compute_s"] += now - self._began if self._began is not None else 0.0
        if self._began is not None and self._forward_ended is not None and self.steps >= COLD_STEPS:
            self._backward_s.append(now - self._forward_ended)
            if samples != 0:
                self._samples_per_s.append((1.0 if samples is None else samples) / (now - self._began))
        self.steps += 1
        self._began = self._forward_ended = None

    @property
    def backward_s(self) -> float | None:
        """Median seconds from the end of forward to the last gradient; None before the second step has ended."""
        return statistics.median(self._backward_s) if self._backward_s else None

    @property
    def samples_per_s(self) -> float | None:
        """Median samples per second of forward and backward, without waiting; steps per second without weights.

        None before the second step with samples has ended.
        """
        return statistics.median(self._samples_per_s) if self._samples_per_s else None
