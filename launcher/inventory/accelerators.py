"""What data sheets say about accelerators: peak rates that no program quite reaches, dense, without sparsity.

Kinds are called as Ray calls them (its resource `accelerator_type:...`), with the size of the memory where cards of one
kind differ in it. Rates of the matrix units with 16-bit inputs count sums in float32, as training uses them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 1024**3


@dataclass(frozen=True)
class DataSheet:
    """One card.

    Attributes:
        memory_bytes: of the card.
        memory_bytes_per_s: between the chip and its memory.
        half_flops_per_s: fp16 or bf16, of the matrix units where it has some.
        single_flops_per_s: fp32 of the vector units; None where the maker gives none.
        source: the document.
    """

    memory_bytes: int
    memory_bytes_per_s: float
    half_flops_per_s: float
    single_flops_per_s: float | None
    source: str


_ADA = "NVIDIA Ada GPU Architecture white paper, appendix A"
_A100 = "NVIDIA A100 Tensor Core GPU data sheet, SXM"
_A800 = "NVIDIA A800 data sheet, as the A100 but for NVLink"
_V100 = "NVIDIA V100 Tensor Core GPU data sheet, SXM2"
_EXPORT = "NVIDIA HGX H20, L20 and L2 product table (tomshardware.com, January 2024); no public data sheet"
_ASCEND = "as commonly cited; Huawei publishes no data sheet of the chip"


def _sheet(gib: int, memory_gb_s: float, half_tera: float, single_tera: float | None, source: str) -> DataSheet:
    single = None if single_tera is None else round(single_tera * 1e12, -9)
    return DataSheet(gib * GIB, memory_gb_s * 1e9, round(half_tera * 1e12, -9), single, source)


SHEETS: dict[str, DataSheet] = {
    "GeForce-RTX-4090": _sheet(24, 1008, 165.2, 82.6, _ADA),
    "GeForce-RTX-4090-D": _sheet(24, 1008, 147.1, 73.5, f"14592 cores at 2.52 GHz, each as in {_ADA}"),
    "A100-40G": _sheet(40, 1555, 312, 19.5, _A100),
    "A100-80G": _sheet(80, 2039, 312, 19.5, _A100),
    "A800-40G": _sheet(40, 1555, 312, 19.5, _A800),
    "A800-80G": _sheet(80, 2039, 312, 19.5, _A800),
    "V100-16G": _sheet(16, 900, 125, 15.7, _V100),
    "V100-32G": _sheet(32, 900, 125, 15.7, _V100),
    "P100": _sheet(16, 732, 18.7, 9.3, "NVIDIA Tesla P100 PCIe data sheet; no matrix units"),
    "H20": _sheet(96, 4000, 148, 44, _EXPORT),
    "L20": _sheet(48, 864, 119.5, 59.8, _EXPORT),
    "L2": _sheet(24, 300, 96.5, 24.1, _EXPORT),
    "Ascend910B": _sheet(64, 1600, 313, None, _ASCEND),
    "Ascend910B4": _sheet(32, 800, 280, None, _ASCEND),
}
_BY_MEMORY = ("A100", "A800", "V100")


def kind_of(device: str, memory_bytes: int | None) -> str:
    """The kind of a device by the name that its driver or Ray gives: "NVIDIA A100-SXM4-80GB" is "A100-80G".

    A name that is not known comes back with dashes for spaces and without its maker.
    """
    name = re.sub(r"^(NVIDIA|Tesla|Huawei)\s+", "", device.strip())
    name = re.sub(r"^Tesla\s+", "", name).replace(" ", "-")
    for family in _BY_MEMORY:
        if re.match(rf"{family}(\b|-)", name):
            sizes = sorted(int(kind[len(family) + 1 : -1]) for kind in SHEETS if kind.startswith(f"{family}-"))
            said = re.search(r"(\d+)G", name[len(family) :])
            gib = int(said[1]) if said else round((memory_bytes or 0) / GIB)
            return f"{family}-{max((size for size in sizes if size <= gib + 1), default=sizes[0])}G"
    bare = re.match(r"(P100|H20|L20|L2|Ascend910B4|Ascend910B)(?![0-9A-Za-z])", name)
    return bare[1] if bare else "Ascend910B" if name.startswith("Ascend910B") else name
