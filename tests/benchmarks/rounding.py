"""How 16-bit sums are rounded, ours and Gloo's: ``torchrun --nproc-per-node 8 -m tests.benchmarks.rounding``.

Random elements are summed over all ranks, and once more in a buffer that begins elsewhere. Printed for each dtype and
backend: the share of elements that are not the exact sum, correctly rounded, and of those that the offset changed.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

import collectives  # noqa: F401 - registers the backend

COUNT, OFFSET = 300_000, 1234


def values(rank: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(COUNT, generator=torch.Generator().manual_seed(rank)).to(dtype)


def summed(group: object, own: Tensor, offset: int) -> Tensor:
    """The sum, of a message that has `offset` zeros before it."""
    buffer = torch.zeros(offset + COUNT, dtype=own.dtype)
    buffer[offset:] = own
    dist.all_reduce(buffer, group=group)  # type: ignore[arg-type]
    return buffer[offset:]


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("narrowgauge")
    rank, size = dist.get_rank(), dist.get_world_size()
    groups = {"narrowgauge": dist.group.WORLD, "gloo": dist.new_group(backend="gloo")}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        exact = torch.stack([values(other, dtype).double() for other in range(size)]).sum(0).to(dtype)
        for name, group in groups.items():
            first, moved = summed(group, values(rank, dtype), 0), summed(group, values(rank, dtype), OFFSET)
            if rank == 0:
                wrong, changed = ((first != other).double().mean().item() for other in (exact, moved))
                print(f"{str(dtype)[6:]:10}{name:13}not correctly rounded {wrong:8.3%}   changed {changed:8.3%}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
