"""`collectives.attach`: DDP's gradients through our engine, with a codec and with weights.

    DDP's reducer: a bucket is ready
      -> Attached._bucket_ready        scaled by this rank's weight               sample_weights.py
        -> BucketLayout.reduce         repacked, in the first step after restart  bucket_layout.py
          -> Attached._reduce          averaged: as it is, coded or low-rank      process_group.py, low_rank.py
            -> a future                the reducer waits for all of them after backward

The hook only starts ops, so backward continues meanwhile. Ops must start in the same order on all ranks. Within a step
that order is: all ops of `_begin_step` (codec auto's maximum, the sum of the weights), then one op for each bucket in
DDP's order, then low-rank's second messages. All of it runs on the thread of the backward pass, which DDP runs in the
same order on every rank; callbacks of futures, which run at times of their own, start no ops.

The error of an op comes out of its future, and so out of `backward()`, as a RuntimeError with our message, without
frames of ours below it (`work.Promise`). What the hook itself raises comes out as it is.
"""

from __future__ import annotations

import functools
import logging
import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from collectives import options
from collectives.backend.c10d import all_reduce_options, dist
from collectives.backend.process_group import NarrowgaugeGroup
from collectives.backend.untraced import untraced
from collectives.backend.work import Pending, Promise
from collectives.errors import UsageError
from collectives.options import CODECS
from collectives.planning.planner import with_codec
from collectives.schedule.codec import CODECS as ENGINE_CODECS
from collectives.training import auto_codec
from collectives.training.bucket_layout import BucketLayout
from collectives.training.error_feedback import Bucket, Residuals
from collectives.training.low_rank import LowRank
from collectives.training.sample_weights import Weights
from collectives.training.step_timer import StepTimer

logger = logging.getLogger(__name__)

LOSSY = [name for name in ENGINE_CODECS if name != "none"]  # these encode on network links alone
MEASURED_STEPS = 4  # before codec auto chooses for the first time
RECHOOSE_STEPS = 500  # until it chooses again: links and speeds change

_attached: weakref.WeakSet[Attached] = weakref.WeakSet()


@untraced
def attach(model: DistributedDataParallel, codec: str | None = None, weight: float | None = None) -> Attached:
    """Send the gradients of a DDP model with a codec, averaged by the samples that each rank has.

    Call it once, on all ranks with the same codec, after the model was wrapped and before its first backward.

    Args:
        model: wrapped by DistributedDataParallel over a group of backend narrowgauge, without another comm hook.
        codec: "none": gradients are sent as they are. "bf16", "int8", "int4": float32 gradients are rounded on network
            links and what rounding cut off is added in the next step; other dtypes are sent as they are.
            "narrow-bf16", "narrow-int8", "narrow-int4": the same on narrow links only, see `Topology.is_narrow`.
            "low-rank": PowerSGD of rank 4. "auto": the first steps use none, then the mildest of the codecs above,
            low-rank excepted, whose predicted communication takes no longer than backward; chosen again every 500
            steps. None takes the options' codec, `collectives: {codec: ...}` of a job file.
        weight: this rank's samples; see `set_weight`. None: all ranks count the same until `set_weight` is called.

    Returns:
        A handle with the model's weight and its state for checkpoints; the model keeps it alive.

    Raises:
        UsageError: the model is not wrapped by DDP, its group is of another backend, or it has a comm hook; an unknown
            codec.

    Warns:
        RuntimeWarning: the group runs on Gloo, which has no codecs: gradients are sent as they are.
    """
    chosen = options.current().codec if codec is None else codec
    if chosen not in CODECS:
        raise UsageError(f"attach got codec {chosen!r}; wanted one of {', '.join(CODECS)}")
    if not isinstance(model, DistributedDataParallel):
        raise UsageError(f"attach got a {type(model).__name__}; wanted a model wrapped by DistributedDataParallel")
    group = model.process_group
    if not isinstance(group, NarrowgaugeGroup):
        raise UsageError(
            f"attach: the model's process group is of backend {dist.get_backend(group)}; wanted narrowgauge: "
            'dist.init_process_group("narrowgauge") before the model is wrapped'
        )
    if model._comm_hooks and isinstance(model._comm_hooks[0][1], Attached):
        raise UsageError("attach: the model is attached already")
    if model._comm_hooks:
        hook = getattr(model._comm_hooks[0][0], "__qualname__", model._comm_hooks[0][0])
        raise UsageError(f"attach: the model has the comm hook {hook}; attach is a comm hook itself, and DDP takes one")
    if group.engine is None and chosen not in ("none", "low-rank"):
        warnings.warn(
            f"attach: this group runs on Gloo, which has no codecs: codec {chosen} is not used and gradients are sent "
            "as they are",
            RuntimeWarning,
            stacklevel=2,
        )
        chosen = "none"
    if group.engine is not None and chosen in LOSSY and len(group.engine.topology.hosts) == 1:
        logger.log(
            logging.WARNING if group.rank() == 0 else logging.DEBUG,
            "codec %s has nothing to do: all ranks are on one machine (%s), so no gradient crosses a network link",
            *(chosen, group.engine.topology.hosts[0].name),
        )
    # The sum of weights is on the CPU, yet it must keep its place among the gradients: all go to the part of the model.
    return Attached(model, group._get_backend(model.device), chosen, weight)


@untraced
def set_weight(samples: float) -> None:
    """Set how many samples this rank's gradients are the mean of, from the next backward on, for all attached models.

    The gradient that all ranks get is sum_i w_i g_i / sum_i w_i. If the loss is the mean over a rank's samples, this is
    the gradient of the mean over all ranks' samples, whatever their shares. A rank without samples sets 0 and runs
    forward and backward on any batch (the one before, or an empty one): its gradients do not count, even if they are
    NaN. With `no_sync`, set the samples of all passes that add up to one gradient, and make that gradient their mean:
    divide each pass's summed loss by their number. Either all ranks set weights or none does.

    Args:
        samples: this rank's samples, 0 or more.

    Raises:
        UsageError: no model is attached; samples are negative or not finite.
    """
    if not _attached:
        raise UsageError("set_weight: no model is attached in this process; call collectives.attach(model) first")
    for each in _attached:
        each.set_weight(samples)


def measured_samples_per_s() -> float | None:
    """Samples per second of the attached model with the most steps; None if none has been measured yet."""
    measured = [each for each in _attached if each.samples_per_s is not None]
    return max(measured, key=lambda each: each.steps).samples_per_s if measured else None


@untraced
class Attached:
    """A DDP model whose gradients are sent by our engine; made by `attach`.

    Attributes:
        codec: the one in force; "auto" until it has chosen.
    """

    def __init__(
        self, model: DistributedDataParallel, group: NarrowgaugeGroup, codec: str, weight: float | None
    ) -> None:
        names: dict[Tensor, str] = {parameter: name for name, parameter in model.module.named_parameters()}
        self.codec = codec
        self._group = group
        self._names = names
        self._weights = Weights(group)
        self._residuals = Residuals(names)
        self._low_rank = LowRank(names, self._average)
        self._layout = BucketLayout(names)
        self._timer = StepTimer()
        self._is_auto, self._chooses_at = codec == "auto", MEASURED_STEPS
        self._uncoded: set[torch.dtype] = set()
        if weight is not None:
            self.set_weight(weight)
        # On the inner module: DDP's own forward may wait for other ranks, since it broadcasts buffers.
        model.module.register_forward_pre_hook(untraced(lambda module, _: self._forward_begins(module)))
        model.module.register_forward_hook(untraced(lambda module, *_: self._forward_ended(module)))
        # DDP checks a hook's annotations and refuses strings, which `from __future__ import annotations` makes of them;
        # a lambda has none.
        model.register_comm_hook(
            self, untraced(lambda attached, bucket: attached._bucket_ready(Bucket.of(bucket)).get_future())
        )
        _attached.add(self)

    def set_weight(self, samples: float) -> None:
        """`collectives.set_weight` for this model alone."""
        self._weights.set(samples)

    @property
    def steps(self) -> int:
        """Steps so far: backward passes that ended in communication."""
        return self._timer.steps

    @property
    def samples_per_s(self) -> float | None:
        """Samples per second that this rank computes, forward and backward, without waiting; median of 20 steps.

        None until two steps have ended. Steps per second if no weight was set.
        """
        return self._timer.samples_per_s

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on besides model and optimizer. It differs between ranks: save it on each rank."""
        return {
            "codec": self.codec,
            "weights": self._weights.state_dict(),
            "residuals": self._residuals.state_dict(),
            "low_rank": self._low_rank.state_dict(),
            "buckets": self._layout.state_dict(),
            "until_choice": max(0, self._chooses_at - self._timer.steps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, on all ranks from the same step; the next steps are the same bit for bit.

        This also holds in a new process, whose DDP packs its buckets in another way in the first step: see
        `bucket_layout.py`.

        Raises:
            UsageError: the state is of another model or codec.
        """
        if self._is_auto and state["codec"] == "low-rank":
            raise UsageError("load_state_dict: the state is of codec low-rank, which auto never chooses")
        if state["codec"] != self.codec and not self._is_auto:
            raise UsageError(f"load_state_dict: the state is of codec {state['codec']}; this model has {self.codec}")
        self._residuals.load_state_dict(state["residuals"])
        self._low_rank.load_state_dict(state["low_rank"])
        self._layout.load_state_dict(state["buckets"])
        self._weights.load_state_dict(state["weights"])
        self.codec = state["codec"]
        # Timings are not saved, so codec auto waits until MEASURED_STEPS have been timed again.
        self._chooses_at = self._timer.steps + max(MEASURED_STEPS, state.get("until_choice", RECHOOSE_STEPS))

    # One step

    def _forward_begins(self, module: torch.nn.Module) -> None:
        if module.training and torch.is_grad_enabled():  # evaluation between steps is not timed
            self._timer.forward_begins()

    def _forward_ended(self, module: torch.nn.Module) -> None:
        if module.training and torch.is_grad_enabled():
            self._timer.forward_ended()

    def _bucket_ready(self, bucket: Bucket) -> Promise:
        if bucket.index == 0:
            self._begin_step()
        if bucket.is_last:
            # Before the bucket is reduced, which may wait for other ranks: here the rank's own computation is over.
            self._timer.gradients_done(self._weights.weight)
        self._weights.scale(bucket.flat)
        return self._layout.reduce(bucket, self._reduce)

    def _begin_step(self) -> None:
        if self._is_auto and self._timer.steps >= self._chooses_at:
            self.codec = self._choose_codec()
            self._chooses_at = self._timer.steps + RECHOOSE_STEPS
        self._weights.begin_step()
        self._low_rank.begin_step()

    def _reduce(self, bucket: Bucket) -> Promise:
        """Begin to average a bucket of scaled gradients."""
        if self.codec in ("none", "auto") or not self._takes_codec(bucket.flat):
            if self._is_auto and bucket.flat.dtype == torch.float32:
                # Auto may have dropped a codec; its residual goes into the first bucket that is sent whole.
                self._residuals.settle(bucket, "none")
            pending: Pending = self._average(bucket.flat)
        elif self.codec == "low-rank":
            pending = self._low_rank.reduce(bucket, self._residuals.vector(bucket, bucket.flat.device))
        else:
            assert self._group.engine is not None, "attach allows no codec on Gloo"
            # The plan follows from codec and topology, and with it which rank encodes which elements.
            self._residuals.settle(bucket, (self.codec, self._group.engine.topology))
            residual = self._residuals.vector(bucket, torch.device("cpu"))
            pending = self._group.all_reduce_coded(bucket.flat, "avg", self.codec, residual)
        if bucket.is_last:
            self._low_rank.end_step()
            self._residuals.end_step()
        # Perhaps on another stream than backward's; DDP, which waits, joins it.
        correct = functools.partial(self._weights.correct, bucket.flat)
        return Promise(bucket.flat).follow(pending, correct)

    def _average(self, flat: Tensor) -> Any:
        return self._group.allreduce([flat], all_reduce_options(dist.ReduceOp.AVG))

    def _takes_codec(self, flat: Tensor) -> bool:
        if flat.dtype == torch.float32:
            return True
        if flat.dtype not in self._uncoded:  # warn once, not in every step
            self._uncoded.add(flat.dtype)
            logger.warning("codec %s is for float32; gradients of %s are sent as they are", self.codec, flat.dtype)
        return False

    def _choose_codec(self) -> str:
        """The same on all ranks, which share the slowest rank's timing and the plan; plans change during ops only."""
        slowest = torch.tensor([self._timer.backward_s or 0.0], dtype=torch.float64)
        self._group.allreduce([slowest], all_reduce_options(dist.ReduceOp.MAX)).wait()
        buckets = self._layout.bucket_bytes()
        codecs = self._group.plan("all_reduce", max(buckets)).codecs
        choice = auto_codec.choose(codecs, buckets, float(slowest), self._predicted_s)
        logger.log(logging.INFO if self._group.rank() == 0 else logging.DEBUG, "%s", choice)
        return choice.codec

    def _predicted_s(self, num_bytes: int, codec: str) -> float:
        return with_codec(self._group.plan("all_reduce", num_bytes), codec).predicted_s
