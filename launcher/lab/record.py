"""The labs that are up, in /run/narrowgauge/labs/NAME: lab file, namespaces, Ray nodes, temporary folder.

The record is written before the first namespace is made, so that `down` finds everything whatever happens meanwhile.
/run, since it is emptied at boot, as the namespaces are.
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
    """A process, by number and start time: after it has ended, the kernel may give its number to another one."""

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
    """One lab that is up, or on its way up or down.

    Attributes:
        source: path of the lab file, for messages.
        ray: the process of each host's Ray node, by hostname.
        temp_dir: of the Ray nodes.
    """

    lab: LabFile
    source: str
    namespaces: list[str]
    ray: dict[str, Started] = field(default_factory=dict)
    temp_dir: str | None = None

    @classmethod
    def claim(cls, lab: LabFile, source: str) -> LabRecord:
        """Create the record. Creating its folder is atomic, so of two `up` at the same time one fails.

        Raises:
            LabError: there is a record of that name, or no permission.
        """
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
        """The record of that name; None if there is none, or if it is only being written."""
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
        """The lab's topology by its file, for processes in it that do not measure."""
        return self.folder / f"{self.lab.name}.topology.json"

    def save(self) -> None:
        """Write the record, atomically: a reader sees the old one or the new one."""
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
        """Delete the record."""
        shutil.rmtree(self.folder, ignore_errors=True)


def hosts_file(name: str) -> Path:
    """The file that processes in the lab of that name see as /etc/hosts."""
    return ROOT / name / "hosts"


def _hosts(lab: LabFile) -> str:
    """The text of /etc/hosts. The second line of each host is its address as a dual-stack socket shows it, such as that
    of torch's store; with it, a reverse lookup finds the host in this file."""
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    for index, host in enumerate(lab.hosts):
        lines += [f"{lab.address(index)} {host.name}", f"::ffff:{lab.address(index)} {host.name}"]
    return "\n".join(lines) + "\n"


def names() -> list[str]:
    """Names of the labs that are up."""
    return sorted(path.name for path in ROOT.iterdir() if path.is_dir()) if ROOT.is_dir() else []
