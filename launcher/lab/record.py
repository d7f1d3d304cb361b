"""What is up, in /run/narrowgauge/labs/NAME: the lab's file, its namespaces, its Ray nodes, its temporary folder.

The record is written before the first thing is made, so that `down` finds everything whatever happened meanwhile.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from launcher.config.lab_file import LabFile
from launcher.errors import LabError
from launcher.lab.network import NEEDS, namespaces

ROOT = Path("/run/narrowgauge/labs")


@dataclass(frozen=True)
class Started:
    """A process, told from a later one with the same number by when it began."""

    pid: int
    began: float

    @classmethod
    def of(cls, pid: int) -> Started:
        return cls(pid, psutil.Process(pid).create_time())

    @property
    def lives(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.began and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@dataclass
class LabRecord:
    """One lab that is up, or is on its way up or down."""

    lab: LabFile
    source: str
    namespaces: list[str]
    ray: dict[str, Started] = field(default_factory=dict)
    temp_dir: str | None = None

    @classmethod
    def claim(cls, lab: LabFile, source: str) -> LabRecord:
        """Begin a record. Raises LabError if there is one of that name."""
        record = cls(lab, source, namespaces(lab))
        try:
            ROOT.mkdir(parents=True, exist_ok=True)
            record.folder.mkdir()
        except FileExistsError:
            raise LabError(
                f"lab {lab.name!r} is up already; `launcher lab status` shows it, "
                f"`launcher lab down {lab.name}` ends it"
            ) from None
        except OSError as error:
            raise LabError(f"{NEEDS}; got {error}") from None
        record.save()
        hosts_file(lab.name).write_text(_hosts(lab), encoding="ascii")
        record.topology_file.write_text(lab.topology().to_json(), encoding="utf-8")
        return record

    @classmethod
    def load(cls, name: str) -> LabRecord | None:
        """The record of that name, if there is one."""
        try:
            found: dict[str, Any] = json.loads((ROOT / name / "record.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        found["lab"] = LabFile.model_validate(found["lab"])
        found["ray"] = {host: Started(**started) for host, started in found["ray"].items()}
        return cls(**found)

    @property
    def folder(self) -> Path:
        return ROOT / self.lab.name

    @property
    def topology_file(self) -> Path:
        """The topology of the lab as its file says it."""
        return self.folder / f"{self.lab.name}.topology.json"

    def save(self) -> None:
        """Write the record, all of it or nothing."""
        parts = {
            "lab": self.lab.model_dump(exclude_none=True),
            "source": self.source,
            "namespaces": self.namespaces,
            "ray": {host: asdict(started) for host, started in self.ray.items()},
            "temp_dir": self.temp_dir,
        }
        new = self.folder / "record.new"
        new.write_text(json.dumps(parts, indent=2), encoding="utf-8")
        new.replace(self.folder / "record.json")

    def remove(self) -> None:
        """Forget the lab."""
        shutil.rmtree(self.folder, ignore_errors=True)


def hosts_file(name: str) -> Path:
    """What processes in the lab of that name find as /etc/hosts."""
    return ROOT / name / "hosts"


def _hosts(lab: LabFile) -> str:
    """The second line of each host is how a socket for both IPv4 and IPv6, such as torch's store, sees its address."""
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    for index, host in enumerate(lab.hosts):
        lines += [f"{lab.address(index)} {host.name}", f"::ffff:{lab.address(index)} {host.name}"]
    return "\n".join(lines) + "\n"


def names() -> list[str]:
    """Labs that are up."""
    return sorted(path.name for path in ROOT.iterdir() if path.is_dir()) if ROOT.is_dir() else []
