"""A small GPT that learns to write Python, byte by byte, from the source of Python's own standard library.

An ordinary model and an ordinary DDP loop (`train`). `import collectives` registers the backend "narrowgauge", and
`init_process_group` selects it. Run it with the launcher or without:

    launcher submit configs/quickstart.yaml
    torchrun --nproc-per-node 4 -m launcher.examples.train_gpt --steps 20

The same seed gives the same initial weights and the same global batches, whatever the backend, the number of ranks and
their shares of the batch, so losses can be compared step by step. With `checkpoint: {every_steps: 50}` in the job file
a run that failed or was stopped can be resumed.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sysconfig
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - the name that everybody uses
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import collectives
from launcher import checkpoint, progress

BYTES = 256
STEPS_APART = 1_000_003  # between the random seeds of two runs, so that their batches differ
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "encodings", "pydoc_data"}


# ---- data ----------------------------------------------------------------------------------------------------------


def read_stdlib() -> tuple[Tensor, Tensor]:
    """The source of the standard library as two uint8 vectors, (train, heldout), without tests and tables of data.

    One file in ten is held out. A hash of its path decides which, so that all ranks agree without a message.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    train, heldout = bytearray(), bytearray()
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - LEFT_OUT)
        for path in sorted(Path(folder, file) for file in files if file.endswith(".py")):
            held = hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()[0] < 26
            (heldout if held else train).extend(path.read_bytes())
    return torch.frombuffer(train, dtype=torch.uint8), torch.frombuffer(heldout, dtype=torch.uint8)


def unigram_entropy(data: Tensor) -> float:
    """Nats per byte of a model that knows only the frequency of each byte: the loss to beat."""
    frequency = torch.bincount(data.int(), minlength=BYTES).double() / len(data)
    return float(-torch.special.xlogy(frequency, frequency).sum())


def batch(data: Tensor, size: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random windows (size, context) and, for each of their bytes, the byte that comes next."""
    starts = torch.randint(len(data) - context, (size, 1), generator=generator)
    windows = data[starts + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]


# ---- model ---------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return result


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each on the normalised stream and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        mixed: Tensor = self.mlp(self.norm2(x))
        return x + mixed


class GPT(nn.Module):
    """Bytes (rows, length) in, logits of the next byte (rows, length, 256) out; the head is the embedding's weight."""

    def __init__(self, context: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(BYTES, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_stream = name.endswith(("out.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if into_stream else 0.02)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        stream = self.blocks(self.embedding(x) + self.position(positions))
        return F.linear(self.norm(stream), self.embedding.weight)

    @torch.no_grad()
    def generate(self, prompt: bytes, length: int, generator: torch.Generator) -> bytes:
        """`prompt` and `length` more bytes, sampled from the model at temperature 0.7."""
        text = list(prompt)
        for _ in range(length):
            logits = self(torch.tensor([text[-self.context :]]))[0, -1]
            text.append(int(torch.multinomial((logits / 0.7).softmax(0), 1, generator=generator)))
        return bytes(text)


# ---- training ------------------------------------------------------------------------------------------------------


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    logits: Tensor = model(inputs)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up over the first tenth of the steps, then a cosine decay to a tenth of the peak."""
    warm_up = max(1, args.steps // 10)
    if step < warm_up:
        return float(args.lr * (step + 1) / warm_up)
    decay = 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, args.steps - warm_up)))
    return float(args.lr * (0.1 + 0.9 * decay))


@torch.no_grad()
def heldout_loss(model: nn.Module, heldout: Tensor, args: argparse.Namespace) -> float:
    """Mean loss over `heldout_windows` windows, evenly spaced in the held-out data; each rank evaluates a part."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    starts = torch.linspace(0, len(heldout) - args.context - 1, args.heldout_windows).long()[rank::world_size]
    total = torch.zeros(2, dtype=torch.float64)
    for first in range(0, len(starts), args.batch):
        some = starts[first : first + args.batch]
        windows = heldout[some[:, None] + torch.arange(args.context + 1)].long()
        total += torch.tensor([loss_of(model, windows[:, :-1], windows[:, 1:]).item() * len(some), len(some)])
    dist.all_reduce(total)
    return float(total[0] / total[1])


def train(model: GPT, data: Tensor, args: argparse.Namespace) -> None:
    """An ordinary DDP loop. Its own lines are the four objects before it, and one call to each of them per step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1)
    ddp = DistributedDataParallel(model)
    # Compresses gradients with the job's codec, and measures computing. Only for our backend.
    attached = collectives.attach(ddp) if args.backend == "narrowgauge" else None
    # Each rank's part of the global batch, in proportion to its speed.
    global_batch = progress.global_batch(default=args.batch * dist.get_world_size())
    shares = collectives.Shares(global_batch)
    saver = checkpoint.Checkpoints(ddp, optimizer, shared={"shares": shares}, own={"attached": attached})

    tokens = 0  # since the last report
    for step in range(saver.restore(), args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        # All ranks draw the same global batch and take their own rows, so the samples of a step do not depend on the
        # number of ranks.
        draw = torch.Generator().manual_seed(args.seed * STEPS_APART + step)
        rows = shares.next()
        inputs, targets = (each[rows] for each in batch(data, global_batch, args.context, draw))
        if attached:  # DDP averages over ranks; the weight makes it the mean over samples
            attached.set_weight(len(inputs))
        loss = loss_of(ddp, inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += inputs.numel()
        if step == 0 or (step + 1) % args.report_every == 0 or step + 1 == args.steps:
            progress.report(step + 1, of=args.steps, loss=loss.item(), tokens=tokens)
            tokens = 0
        saver.save_if_due(step + 1)
    saver.save(args.steps)


def main() -> None:
    args = arguments()
    dist.init_process_group(args.backend)
    rank = dist.get_rank()

    data, heldout = read_stdlib()
    if rank == 0:
        progress.note(unigram_entropy=round(unigram_entropy(heldout), 4), train_bytes=len(data))

    torch.manual_seed(args.seed)
    model = GPT(args.context, args.layers, args.width, args.heads)
    train(model, data, args)

    final = heldout_loss(model, heldout, args)
    dist.destroy_process_group()
    if rank == 0:
        sample = model.generate(b"def ", args.sample_bytes, torch.Generator().manual_seed(args.seed))
        progress.note(heldout_loss=final, sample=sample.decode("utf-8", errors="replace"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="narrowgauge", help="backend of torch.distributed")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument(
        "--batch", type=int, default=16, help="windows per rank and step, unless the job has a global_batch"
    )
    parser.add_argument("--context", type=int, default=64, help="bytes in a window")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report-every", type=int, default=10, help="steps between reports")
    parser.add_argument("--heldout-windows", type=int, default=256, help="windows of the held-out loss")
    parser.add_argument("--sample-bytes", type=int, default=200, help="length of the text written at the end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
