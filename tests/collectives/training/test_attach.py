"""Attached models: the gradient is the one that a single process would compute, and errors are told."""

from __future__ import annotations

import copy
import itertools
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import collectives
from collectives.topology import Host, Topology
from collectives.training import ddp
from collectives.training.auto_attach import attach_new_models
from collectives.training.ddp import MEASURED_STEPS, Attached
from tests.processes import run

CODED = ("bf16", "int8", "int4", "narrow-int8")

SHARES = [5, 2, 0]
SMALL = 0.02  # MiB: several buckets


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))


def data(samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(samples, 20, generator=generator), torch.randint(5, (samples,), generator=generator)


def own_rows(rank: int, shares: list[int]) -> slice:
    first = sum(shares[:rank])
    return slice(first, first + shares[rank])


def gradients_of(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def single_process(samples: int) -> list[Tensor]:
    model = small_model()
    inputs, targets = data(samples)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    return gradients_of(model)


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def weighted(rank: int, size: int, store: Any, codec: str) -> dict[str, float]:
    """By case: the largest difference from the gradient of one process."""
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    found: dict[str, float] = {}
    model = DistributedDataParallel(small_model(), bucket_cap_mb=SMALL)
    collectives.attach(model, codec, weight=SHARES[rank])
    for step, shares in enumerate([SHARES, SHARES, [1, 1, 1], [0, 0, 9], [4, 4, 4]]):
        inputs, targets = (part[own_rows(rank, shares)] for part in data(sum(shares)))
        collectives.set_weight(shares[rank])
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()  # NaN on an empty rank
        found[f"step {step}, shares {shares}"] = largest_difference(gradients_of(model), single_process(sum(shares)))

    passes = [own_rows(rank, SHARES), slice(7 + 2 * rank, 9 + 2 * rank)]
    rows = [part[rows] for rows in passes for part in data(13)]
    samples = SHARES[rank] + 2
    collectives.set_weight(samples)
    model.zero_grad()
    for index, (inputs, targets) in enumerate([(rows[0], rows[1]), (rows[2], rows[3])]):
        with model.no_sync() if index == 0 else nullcontext():
            (nn.functional.cross_entropy(model(inputs), targets, reduction="sum") / samples).backward()
    found["accumulated"] = largest_difference(gradients_of(model), single_process(13))
    dist.destroy_process_group()
    return found


def test_weighted_mean_is_the_gradient_of_one_process() -> None:
    for figures in run(weighted, 3, "none"):
        assert len(figures) == 6
        for case, difference in figures.items():
            assert difference < 1e-6, case


def unweighted(rank: int, size: int, store: Any) -> list[tuple[bool, bool]]:
    """Per variant: whether attached gradients, without and with equal weights, have the bits of DDP's own."""
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    inputs, targets = data(12)
    rows = slice(4 * rank, 4 * rank + 4)
    same = []
    for settings in ({"bucket_cap_mb": SMALL}, {"gradient_as_bucket_view": True}, {"static_graph": True}):
        outcomes = []
        for weight in ("not attached", None, 4):
            model = DistributedDataParallel(small_model(), **settings)
            if weight != "not attached":
                collectives.attach(model, "none", weight)
            for _ in range(3):
                model.zero_grad()
                nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
            outcomes.append(gradients_of(model))
        plain, attached, equal = outcomes
        same.append((largest_difference(attached, plain) < 1e-7, largest_difference(attached, equal) == 0))
    dist.destroy_process_group()
    return same


def test_without_weights_as_ddp_itself() -> None:
    assert run(unweighted, 3) == [[(True, True)] * 3] * 3


class Adapted(nn.Module):
    """A layer that ranks skip at will, and one parameter in double precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.branch = nn.Linear(20, 64), nn.Linear(64, 64)
        self.scale = nn.Parameter(torch.ones(64, dtype=torch.float64))

    def forward(self, inputs: Tensor, takes_branch: bool) -> Tensor:
        hidden = self.enter(inputs)
        hidden = self.branch(hidden) if takes_branch else hidden
        return (hidden * self.scale).sum(1)


def mixed(rank: int, size: int, store: Any, codec: str) -> float:
    """Some ranks skip a layer, and gradients are of two dtypes."""
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    inputs = data(6)[0]
    rows = slice(2 * rank, 2 * rank + 2)
    model = DistributedDataParallel(Adapted(), find_unused_parameters=True, bucket_cap_mb=SMALL)
    collectives.attach(model, codec, weight=2)
    alone = Adapted()
    for _ in range(3):
        model.zero_grad()
        alone.zero_grad()
        model(inputs[rows], takes_branch=rank == 1).mean().backward()
        (sum(alone(inputs[2 * each : 2 * each + 2], each == 1).mean() for each in range(3)) / 3).backward()
    dist.destroy_process_group()
    return largest_difference(gradients_of(model), gradients_of(alone))


@pytest.mark.parametrize("codec", ["none", "low-rank"])
def test_unused_layers_and_two_dtypes(codec: str) -> None:
    for difference in run(mixed, 3, codec):
        assert difference < (1e-5 if codec == "none" else 3)


def links(codec: str) -> str:
    """Equal ones; where a codec is for narrow links only, that of the last of three hosts is one."""
    if not codec.startswith("narrow-"):
        return "equal"
    hosts = tuple(Host(f"host-{i}", (i,), *((1e8,) * 2 if i < 2 else (2e7,) * 2)) for i in range(3))
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        file.write(Topology(hosts).to_json())
    return file.name


def converge(rank: int, size: int, store: Any, executor: str, codec: str) -> tuple[float, float, bytes]:
    """First and last loss, and the parameters' bits."""
    collectives.configure(backend=executor, host=f"host-{rank}", topology=links(codec))
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    model = DistributedDataParallel(small_model(), bucket_cap_mb=SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collectives.attach(model, codec)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs, targets = data(96)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[rank::size]), targets[rank::size])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    dist.destroy_process_group()
    return losses[0], losses[-1], b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("executor", "codec"),
    [
        ("narrowgauge", "low-rank"),
        ("gloo", "low-rank"),
        *(("narrowgauge", codec) for codec in CODED),
    ],
)
def test_trains_with_a_codec_and_ranks_stay_equal(executor: str, codec: str) -> None:
    outcomes = run(converge, 3, executor, codec)
    for first, last, parameters in outcomes:
        assert first > 1.4
        assert last < 0.4
        assert parameters == outcomes[0][2]


def refusals(rank: int, size: int, store: Any) -> dict[str, str]:
    """What each mistake is told."""
    told: dict[str, str] = {}

    def refused(name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"

    def backward(model: nn.Module, kind: Any = nn.Linear) -> None:
        model(torch.ones(2, 3) if kind is nn.Linear else torch.zeros(1, dtype=torch.long)).sum().backward()

    refused("weight before attach", lambda: collectives.set_weight(3))
    dist.init_process_group("gloo", store=dist.PrefixStore("gloo", store), rank=rank, world_size=size)
    refused("group", lambda: collectives.attach(DistributedDataParallel(nn.Linear(3, 3))))
    dist.destroy_process_group()
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    refused("no DDP", lambda: collectives.attach(nn.Linear(3, 3)))  # type: ignore[arg-type]
    refused("codec", lambda: collectives.attach(DistributedDataParallel(nn.Linear(3, 3)), "int7"))
    hooked = DistributedDataParallel(nn.Linear(3, 3))
    hooked.register_comm_hook(None, default_hooks.fp16_compress_hook)
    refused("hook", lambda: collectives.attach(hooked))
    sparse = DistributedDataParallel(nn.Embedding(10, 3, sparse=True))
    collectives.attach(sparse)
    refused("sparse", lambda: backward(sparse, nn.Embedding))
    model = DistributedDataParallel(nn.Linear(3, 3))
    attached = collectives.attach(model)
    refused("again", lambda: collectives.attach(model))
    refused("weight", lambda: attached.set_weight(float("nan")))
    attached.set_weight(0)
    refused("all empty", lambda: backward(model))
    state = attached.state_dict()
    refused("codec of state", lambda: attached.load_state_dict({**state, "codec": "int8"}))
    refused("names of state", lambda: attached.load_state_dict({**state, "residuals": {"x": torch.ones(1)}}))
    refused("shapes of state", lambda: attached.load_state_dict({**state, "residuals": {"bias": torch.ones(4)}}))
    refused("buckets of state", lambda: attached.load_state_dict({**state, "buckets": [["bias"]]}))
    dist.destroy_process_group()
    return told


def test_mistakes_are_told() -> None:
    expected = {
        "weight before attach": "UsageError: set_weight: no model is attached",
        "group": "UsageError: attach: the model's process group is of backend gloo; wanted narrowgauge",
        "no DDP": "UsageError: attach got a Linear; wanted a model wrapped by DistributedDataParallel",
        "codec": "UsageError: attach got codec 'int7'; wanted one of none, narrow-bf16, bf16",
        "hook": "UsageError: attach: the model has the comm hook fp16_compress_hook",
        "sparse": "sparse gradients",
        "again": "UsageError: attach: the model is attached already",
        "weight": "UsageError: set_weight got nan",
        "all empty": "no rank has samples in this step",
        "codec of state": "UsageError: load_state_dict: the state is of codec int8; this model has none",
        "names of state": "UsageError: load_state_dict: residuals of x, which the model has no parameters for",
        "shapes of state": "UsageError: load_state_dict: residuals of bias have shape (4,); the parameter has (3,)",
        "buckets of state": "UsageError: load_state_dict: the state's buckets hold 1 parameters, which are not the 2",
    }
    for told in run(refusals, 2):
        assert set(told) == set(expected)
        for name, part in expected.items():
            assert part in told[name], name


def unmodified(rank: int, size: int, store: Any) -> list[str]:
    """Comm hooks' states after the first call: of a plain model, one with a hook of its own, one on Gloo."""
    attach_new_models()
    collectives.configure(codec="low-rank")
    states = []
    for case in ("plain", "hook", "attached", "gloo"):
        backend = "gloo" if case == "gloo" else "narrowgauge"
        dist.init_process_group(backend, store=dist.PrefixStore(case, store), rank=rank, world_size=size)
        model = DistributedDataParallel(small_model())
        if case == "hook":
            model.register_comm_hook(None, default_hooks.fp16_compress_hook)
        elif case == "attached":
            collectives.attach(model, "none")
        for _ in range(2):
            loss = model(data(4)[0]).sum()
            if case != "gloo":  # where torch._dynamo is loaded, torch's own group may hang as it goes
                loss.backward()
        states.append(" ".join(getattr(state, "codec", "none of ours") for _, state in model._comm_hooks))
        dist.destroy_process_group()
    return states


def test_models_of_unmodified_scripts_are_attached_by_the_launcher() -> None:
    assert run(unmodified, 2) == [["low-rank", "none of ours", "none", ""]] * 2


def on_gloo(rank: int, size: int, store: Any) -> tuple[list[str], str]:
    collectives.configure(backend="gloo")
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        attached = collectives.attach(DistributedDataParallel(nn.Linear(3, 3)), "int8")
    dist.destroy_process_group()
    return [str(each.message) for each in warned], attached.codec


def test_gloo_has_no_codecs_and_says_so() -> None:
    for warned, codec in run(on_gloo, 2):
        assert codec == "none"
        assert any("this group runs on Gloo, which has no codecs: codec int8 is not used" in each for each in warned)


def on_one_machine(rank: int, size: int, store: Any) -> dict[str, list[str]]:
    """By codec, what attaching with it logs."""
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    said: dict[str, list[str]] = {}
    for codec in ("none", "int8", "narrow-bf16", "low-rank", "auto"):
        texts = said[codec] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record, texts=texts: texts.append(record.getMessage())  # type: ignore[method-assign,misc]
        logging.getLogger("collectives").addHandler(handler)
        collectives.attach(DistributedDataParallel(nn.Linear(3, 3)), codec)
        logging.getLogger("collectives").removeHandler(handler)
    dist.destroy_process_group()
    return said


def test_a_codec_that_has_nothing_to_do_is_reported_once() -> None:
    first, second = run(on_one_machine, 2)
    for codec in ("int8", "narrow-bf16"):
        (text,) = first.pop(codec)
        assert re.fullmatch(
            rf"codec {codec} has nothing to do: all ranks are on one machine \(.+\), so no gradient crosses a "
            "network link",
            text,
        )
    assert [each for each in (*first.values(), *second.values()) if each] == []


def fed_back(rank: int, size: int, store: Any, codec: str) -> tuple[float, float]:
    """The same gradients 50 times, of unequal shares: how far the first coded one is off, and how far the mean is."""
    collectives.configure(host=f"host-{rank}", topology=links(codec))
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    inputs, targets = (part[own_rows(rank, SHARES)] for part in data(sum(SHARES)))
    exact = single_process(sum(SHARES))
    model = DistributedDataParallel(small_model(), bucket_cap_mb=SMALL)
    collectives.attach(model, codec, weight=SHARES[rank])
    total = [torch.zeros_like(gradient) for gradient in exact]
    first = 0.0
    for step in range(50):
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        torch._foreach_add_(total, gradients_of(model))
        first = largest_difference(total, exact) if step == 0 else first
    dist.destroy_process_group()
    return first, largest_difference([part / 50 for part in total], exact)


@pytest.mark.parametrize("codec", ["low-rank", *CODED])
def test_what_a_codec_leaves_out_comes_later(codec: str) -> None:
    for first, mean in run(fed_back, 3, codec):
        assert first > 0
        assert mean < first / 5


def test_auto_takes_a_codec_on_slow_links() -> None:
    assert {codec for codec, _ in run(automatic, 2, "1,1")} == {"int4"}


def test_auto_takes_none_within_a_host() -> None:
    outcomes = run(automatic, 2, None)
    assert {codec for codec, _ in outcomes} == {"none"}
    assert "codec auto takes none: predicted communication of a step none " in outcomes[0][1]
    assert "the slowest rank's backward takes" in outcomes[0][1]


def automatic(rank: int, size: int, store: Any, emulate: str | None) -> tuple[str, str]:
    """The codec that auto has chosen, and what it logged."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("collectives.training.ddp").addHandler(handler)
    logging.getLogger("collectives.training.ddp").setLevel(logging.INFO)
    collectives.configure(emulate=emulate, host=f"host-{rank}" if emulate else None)
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    model = DistributedDataParallel(small_model())
    attached = collectives.attach(model, "auto")
    for step in range(MEASURED_STEPS + 2):
        assert (attached.codec == "auto") == (step <= MEASURED_STEPS)
        model(data(4)[0]).sum().backward()
    dist.destroy_process_group()
    return attached.codec, "\n".join(logged)


def test_auto_chooses_again_and_settles_residuals() -> None:
    for codecs, off, residual in run(chooses_again, 2):
        assert codecs == ["auto"] * MEASURED_STEPS + ["int4"] * 3 + ["none"] * 3
        assert off < 1e-5
        assert residual == 0


def chooses_again(rank: int, size: int, store: Any) -> tuple[list[str], float, float]:
    """The codec of each step, how far all gradients together are from the exact ones, and the residual in the end."""
    ddp.RECHOOSE_STEPS = 3
    collectives.configure(emulate="1,1", host=f"host-{rank}")
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    model = DistributedDataParallel(small_model())
    attached = collectives.attach(model, "auto")
    parameters = list(model.parameters())
    codecs: list[str] = []
    total, exact = torch.zeros(1), torch.zeros(1)

    def flat(parts: Iterable[Tensor]) -> Tensor:
        return torch.cat([part.flatten() for part in parts])

    def loss(of: nn.Module, step: int, whose: int) -> Tensor:
        return (of(data(4)[0] * (1 + step)) * (1 + whose)).sum()

    for step in range(MEASURED_STEPS + 6):
        if step == MEASURED_STEPS + 1:
            attached._predicted_s = lambda num_bytes, codec: 0.0  # type: ignore[method-assign]  # links of any speed
        model.zero_grad()
        loss(model, step, rank).backward()
        codecs.append(attached.codec)
        total = total + flat(gradients_of(model))
        for whose in range(size):
            exact = exact + flat(torch.autograd.grad(loss(model.module, step, whose), parameters)) / size
    residual = max(float(part.abs().max()) for part in attached.state_dict()["residuals"].values())
    dist.destroy_process_group()
    return codecs, float((total - exact).abs().max() / exact.abs().max()), residual


def resume(rank: int, size: int, store: Any, codec: str) -> tuple[float, float]:
    """Differences of parameters: resumed in a new DDP model with the state, and without it."""
    collectives.configure(host=f"host-{rank}", topology="equal")
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    inputs, targets = data(24)

    def steps(model: DistributedDataParallel, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            rows = slice(step % 3 * 8 + 2 * rank, step % 3 * 8 + 2 * rank + 2)
            collectives.set_weight(2 + (rank if step % 2 else 0))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()

    def made() -> tuple[DistributedDataParallel, torch.optim.Optimizer, Attached]:
        model = DistributedDataParallel(Crossed(), bucket_cap_mb=SMALL)
        attached = collectives.attach(model, codec, weight=1)
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), attached

    model, optimizer, attached = made()
    steps(model, optimizer, 0, 4)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), attached.state_dict()))
    steps(model, optimizer, 4, 8)
    differences = []
    for with_state in (True, False):
        again, its_optimizer, its_attached = made()
        again.load_state_dict(saved[0])
        its_optimizer.load_state_dict(saved[1])
        if with_state:
            its_attached.load_state_dict(saved[2])
        steps(again, its_optimizer, 4, 8)
        differences.append(largest_difference(list(again.parameters()), list(model.parameters())))
    dist.destroy_process_group()
    return differences[0], differences[1]


class Crossed(nn.Module):
    """Its parameters are registered in another order than they are used, so DDP packs them anew after a step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.second, self.first, self.third = nn.Linear(64, 64), nn.Linear(20, 64), nn.Linear(64, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.third(self.second(self.first(inputs).relu()).relu())


@pytest.mark.parametrize("codec", ["none", "low-rank", "int8"])
def test_saved_state_gives_the_same_next_steps(codec: str) -> None:
    for with_state, without in run(resume, 3, codec):
        assert with_state == 0
        if codec != "none":
            assert without > 0


def lost_peer(rank: int, size: int, store: Any, codec: str, weight: float | None) -> str:
    """What backward says when another rank dies in the middle of training."""
    collectives.configure(host=f"host-{rank}", topology="equal")
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    model = DistributedDataParallel(small_model(), bucket_cap_mb=SMALL)
    collectives.attach(model, codec, weight=weight)
    inputs, targets = data(6)
    for step in itertools.count():
        if step == 2 and rank == 1:
            os._exit(3)
        try:
            nn.functional.cross_entropy(model(inputs), targets).backward()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    raise AssertionError


@pytest.mark.parametrize(("codec", "weight"), [("none", None), ("low-rank", 1.0), ("int8", 1.0)])
def test_a_dead_peer_comes_out_of_backward(codec: str, weight: float | None) -> None:
    results = run(lost_peer, 3, codec, weight, may_die=[1])
    for rank in (0, 2):
        assert re.search(r"(PeerLost|CollectiveError): .*rank 1 \(", results[rank], re.DOTALL), results[rank]
        assert "\nAt:" not in results[rank], "our message comes last"
        assert results[rank].count("error when running the callback") <= 1
