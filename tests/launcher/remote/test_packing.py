"""What of a working directory travels."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from launcher.errors import PackingError
from launcher.remote import packing
from launcher.remote.packing import PackedFile, chosen, left_out, pack


@pytest.mark.parametrize(
    ("path", "exclude", "expected"),
    [
        ("train.py", [], False),
        (".git", [], True),
        ("a/b/__pycache__", [], True),
        ("data", ["data"], True),
        ("deep/data", ["data"], True),
        ("deep/data", ["deep/data/"], True),
        ("deep/data", ["other/data"], False),
        ("model.bin", ["*.bin"], True),
        ("deep/model.bin", ["*.bin"], True),
        ("database.py", ["data"], False),
    ],
)
def test_left_out(path: str, exclude: list[str], expected: bool) -> None:
    assert left_out(PurePosixPath(path), exclude) is expected


def test_an_archive_has_the_code_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    for name in (
        "train.py",
        "lib/model.py",
        ".git/config",
        "env/pyvenv.cfg",
        "env/x.py",
        "out/run-1/x",
        "big/data.bin",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "run.sh").write_text("true")
    (folder / "run.sh").chmod(0o755)
    (folder / "link.py").symlink_to("train.py")
    (folder / "elsewhere").symlink_to("/usr")
    os.mkfifo(folder / "pipe")
    pack(folder, tmp_path / "one.zip", exclude=["big"], runs_dir=folder / "out")
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert sorted(archive.namelist()) == [".narrowgauge", "lib/model.py", "link.py", "run.sh", "train.py"]
        assert archive.read("link.py") == b"train.py"
        assert archive.getinfo("run.sh").external_attr >> 16 == 0o755
    os.utime(folder / "train.py", (0, 0))
    pack(folder, tmp_path / "two.zip", exclude=["big"], runs_dir=folder / "out")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_an_empty_folder_travels_too(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert pack(tmp_path / "empty", tmp_path / "it.zip", exclude=[], runs_dir=tmp_path) > 0


def test_too_much_is_refused_by_name_before_all_is_read() -> None:
    def files() -> object:
        yield PackedFile(PurePosixPath("train.py"), 3)
        yield PackedFile(PurePosixPath("data/images.tar"), 2 * packing.LIMIT_BYTES)
        raise AssertionError("it went on")

    with pytest.raises(PackingError, match=r"over 180 MiB in 2 files") as caught:
        chosen(files())  # type: ignore[arg-type]
    assert "\n     180.0 MiB  data/images.tar\n" in str(caught.value)
    assert "cluster.exclude" in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("x")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything
    with pytest.raises(PackingError, match=r"cannot pack .*Permission denied: '.*secret'; name it in cluster.exclude"):
        pack(tmp_path, tmp_path.parent / "it.zip", exclude=[], runs_dir=tmp_path / "runs")
