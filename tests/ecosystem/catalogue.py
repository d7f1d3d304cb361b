"""The programs: one entry each, with what it needs and what of its output counts."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Iterator
from pathlib import Path

from tests.ecosystem.program import Clone, Program

LOSS = r"^loss (\S+)(?: norm (\S+))?$"
LINES = r"^(?:loss|weight|moved|partial|epoch|padded|objects|log|validation|gathered|metric) (.*)$"


def _examples(folder: str) -> Clone:
    return Clone("examples", "https://github.com/pytorch/examples", f"distributed/{folder}")


def _text(work: Path) -> None:
    letters = random.Random(0)
    (work / "made.txt").write_text("".join(letters.choices("abcdefghijklmnop .\n", k=3000)))


def _tokens(work: Path) -> None:
    """nanoGPT's data folder: uint16 tokens, and the size of their vocabulary."""
    folder = work / "data" / "made"
    folder.mkdir(parents=True)
    numbers = random.Random(0)
    for name in ("train", "val"):
        tokens = b"".join(numbers.randrange(65).to_bytes(2, "little") for _ in range(20_000))
        (folder / f"{name}.bin").write_bytes(tokens)
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 65}))


def _pytorch_examples() -> Iterator[Program]:
    yield Program("example-ddp", "example.py", clone=_examples("ddp"), device="accelerator")
    tutorial = ("3", "1", "--batch_size", "64")
    yield Program(
        "example-ddp-tutorial",
        "multigpu_torchrun.py",
        tutorial,
        clone=_examples("ddp-tutorial-series"),
        device="accelerator",
    )
    yield Program(
        "example-minGPT-ddp", "main.py",
        (
            "data_config.path=made.txt", "data_config.truncate=1.0", "data_config.block_size=32",
            "gpt_config.n_layer=2", "gpt_config.n_head=2", "gpt_config.n_embd=32", "trainer_config.max_epochs=1",
            "trainer_config.batch_size=32", "trainer_config.data_loader_workers=0", "trainer_config.use_amp=false",
        ),
        packages=("hydra-core", "omegaconf", "fsspec", "boto3"), clone=_examples("minGPT-ddp/mingpt"), prepare=_text,
        device="accelerator", prints=r"\[RANK\d\] Epoch \d+ \| Iter \d+ \| \w+ Loss (\S+)",
    )  # fmt: skip
    yield Program("example-FSDP2", "example.py", ("--dcp-api",), clone=_examples("FSDP2"), device="accelerator")
    mixed = ("--mixed-precision", "--explicit-prefetching")
    yield Program("example-FSDP2-bfloat16", "example.py", mixed, clone=_examples("FSDP2"), device="accelerator")
    for name in ("tensor_parallel", "sequence_parallel"):
        yield Program(
            f"example-{name}", f"{name}_example.py", clone=_examples("tensor_parallelism"), device="accelerator"
        )


def _gpts() -> Iterator[Program]:
    for name, processes, tolerance in (("nanoGPT", 2, 0.0), ("nanoGPT-4", 4, 1e-4)):
        yield Program(
            name, "train.py",
            (
                "--dataset=made", "--compile=False", "--dtype=float32", "--n_layer=2", "--n_head=2", "--n_embd=32",
                "--block_size=32", "--batch_size=4", "--gradient_accumulation_steps=4", "--max_iters=20",
                "--eval_iters=2", "--eval_interval=10", "--warmup_iters=5",
            ),
            processes=processes, packages=("numpy",), prepare=_tokens, device="accelerator",
            clone=Clone("nanoGPT", "https://github.com/karpathy/nanoGPT"),
            prints=r"^(?:iter|step) \d+: (?:loss (\d\S+), time|train loss (\S+), val loss (\S+))",
            tolerance=tolerance,
        )  # fmt: skip
    yield Program(
        "minGPT", "own:mingpt_adder.py", clone=Clone("minGPT", "https://github.com/karpathy/minGPT"), prints=LOSS
    )
    picotron = Clone("picotron", "https://github.com/huggingface/picotron")
    layouts = {
        "dp": "2 1 1 1 1f1b", "tp": "1 2 1 1 1f1b", "pp-1f1b": "1 1 2 1 1f1b", "pp-afab": "1 1 2 1 afab",
        "cp": "1 1 1 2 1f1b", "dp-pp": "2 1 2 1 1f1b", "tp-cp": "1 2 1 2 1f1b",
    }  # fmt: skip
    for name, layout in layouts.items():
        sizes = layout.split()
        yield Program(
            f"picotron-{name}", "own:picotron_train.py", tuple(sizes), math.prod(map(int, sizes[:4])),
            ("datasets", "transformers", "safetensors"), picotron, device="accelerator",
            prints=r"Step: \d+ .* Loss: +(\S+) ",
        )  # fmt: skip


def _torch() -> Iterator[Program]:
    for strategy in ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD"):
        yield Program(f"fsdp1-{strategy}", "fsdp1.py", (strategy,), prints=LINES)
    yield Program("fsdp1-HYBRID_SHARD", "fsdp1.py", ("HYBRID_SHARD",), 4, prints=LINES, tolerance=1e-5)
    yield Program("fsdp2", "fsdp2.py", prints=LINES)
    yield Program("fsdp2-bfloat16", "fsdp2.py", ("bfloat16",), prints=LINES)
    for mesh in ("hsdp", "tp"):
        yield Program(f"fsdp2-{mesh}", "fsdp2.py", (mesh,), 4, prints=LINES)
    yield Program("dtensor", "dtensor.py", (), 4, prints=LINES)
    for schedule in ("GPipe", "1F1B"):
        yield Program(f"pipelining-{schedule}", "pipelining.py", (schedule,), 4, prints=LINES)
    for schedule in ("Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble"):
        yield Program(f"pipelining-{schedule}", "pipelining.py", (schedule,), prints=LINES)
    yield Program("checkpoint", "checkpoint.py", (), 4, prints=LINES, tolerance=1e-5)


def _libraries() -> Iterator[Program]:
    yield Program("accelerate", "accelerate_loop.py", packages=("accelerate",), prints=LINES)
    yield Program(
        "transformers-trainer", "transformers_trainer.py", packages=("transformers", "accelerate"), prints=LINES
    )  # fmt: skip
    yield Program("lightning", "lightning_fit.py", packages=("lightning",), prints=LINES)
    yield Program("torchmetrics", "torchmetrics_sync.py", packages=("torchmetrics",), prints=LINES)
    yield Program(
        "torchft-process-groups", "torchft_tests.py", (), 1, ("torchft", "pytest", "parameterized"),
        prints=r"^test (\S+ (?:passed|failed))$", timeout_s=600.0,
        excused={
            "BabyGlooMultiPgTest::test_collective_with_resiliency_0_send_recv passed":
            "a group of ours breaks as a whole: a rank that dies ends a message of two others that is under way",
        },
    )  # fmt: skip


PROGRAMS = (*_pytorch_examples(), *_gpts(), *_torch(), *_libraries())
