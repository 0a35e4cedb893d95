"""What travels with a job and what stays."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from launch.submit import package
from launch.submit.package import OWN_PACKAGES, packing_list, write_package
from trd_ray.errors import ConfigError

ROOT = Path(__file__).parents[3]


def put(folder: Path, *names: str, num_bytes: int = 1) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * num_bytes)


def names(folder: Path, **options: object) -> set[str]:
    """Of the folder's own files."""
    packing = packing_list(folder, **options)  # type: ignore[arg-type]
    return {f.name for f in packing.files if not f.name.startswith(tuple(f"{p}/" for p in OWN_PACKAGES))}


def test_what_is_of_no_use_there_stays(tmp_path: Path):
    put(
        tmp_path, "a.yaml", "sub/b.py", ".git/HEAD", ".venv/bin/python", "env/pyvenv.cfg", "env/lib/x.py",
        "sub/__pycache__/b.pyc", "runs/first/metrics.jsonl", "mine/metrics.jsonl",
        "mine/trajectories/1.parquet", ".mypy_cache/x", "node_modules/x/y.js",
    )  # fmt: skip
    assert names(tmp_path) == {"a.yaml", "sub/b.py"}


def test_a_name_that_is_no_text_stays_and_is_said(tmp_path: Path):
    put(tmp_path, "a.yaml", "été.txt")
    latin = os.fsencode(tmp_path) + b"/\xe9t\xe9"
    os.makedirs(latin + b".d")
    Path(os.fsdecode(latin + b".txt")).touch()
    Path(os.fsdecode(latin + b".d/inner")).touch()
    assert names(tmp_path) == {"a.yaml", "été.txt"}
    left_out = {item.name: item.reason for item in packing_list(tmp_path).left_out}
    assert left_out["\ufffdt\ufffd.txt"] == left_out["\ufffdt\ufffd.d/"] == "its name is not UTF-8"
    write_package(packing_list(tmp_path), {}, tmp_path.parent / "package.zip")


def test_secrets_stay_even_if_asked_for(tmp_path: Path):
    put(
        tmp_path,
        ".env",
        "sub/.env.local",
        "key.pem",
        ".ssh/config",
        ".ray/auth_token",
        "sub/auth_token",
        "id_rsa",
    )
    put(tmp_path, "a.yaml")
    assert names(tmp_path, excludes=["!.env", "!*.pem"]) == {"a.yaml"}


def test_ignore_files_count_from_their_folder(tmp_path: Path):
    put(tmp_path, "a.log", "keep.log", "sub/a.log", "sub/data/x", "data/x", "other/data/x")
    (tmp_path / ".gitignore").write_text("*.log\n!keep.log\n")
    (tmp_path / "sub/.rayignore").write_text("/data/\n")
    assert names(tmp_path) == {".gitignore", "keep.log", "sub/.rayignore", "data/x", "other/data/x"}


def test_excludes_leave_out_and_bring_back(tmp_path: Path):
    put(tmp_path, "a.yaml", "big/x", "runs/one/note")
    assert names(tmp_path, excludes=["big/", "!/runs/"]) == {"a.yaml", "runs/one/note"}


def test_large_weights_stay_unless_the_configuration_uses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(package, "LARGE_WEIGHTS_BYTES", 10)
    put(tmp_path, "models/used/model.safetensors", "models/other/model.safetensors", num_bytes=11)
    put(tmp_path, "models/small/model.safetensors", num_bytes=10)
    put(tmp_path, "models/used/config.json")
    (tmp_path / ".gitignore").write_text("models/used/\n")
    found = names(tmp_path, needed=[tmp_path / "models/used"], excludes=["models/used"])
    assert found == {
        ".gitignore", "models/used/model.safetensors", "models/used/config.json",
        "models/small/model.safetensors",
    }  # fmt: skip


def test_links_to_files_travel_as_files_and_links_to_folders_stay(tmp_path: Path):
    outside = tmp_path / "outside"
    put(outside, "x", "y")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x").symlink_to(outside / "x")
    (folder / "all").symlink_to(outside)
    (folder / "gone").symlink_to(outside / "none")
    os.mkfifo(folder / "pipe")
    packing = packing_list(folder)
    assert names(folder) == {"x"}
    assert {left.name for left in packing.left_out} == {"all", "gone", "pipe"}
    assert names(folder, needed=[folder / "all"]) == {"x", "all/x", "all/y"}


def test_too_large_a_folder_is_refused_and_its_largest_files_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put(tmp_path, "huge.bin.txt", num_bytes=3000)
    put(tmp_path, *(f"small_{i}" for i in range(9)))
    monkeypatch.setattr(package, "MOST_BYTES", 2000)
    with pytest.raises(ConfigError, match="too large") as caught:
        packing_list(tmp_path)
    assert "huge.bin.txt" in str(caught.value) and "--exclude" in str(caught.value)


def test_our_packages_travel_with_a_folder_that_has_none(tmp_path: Path):
    put(tmp_path, "mine.yaml")
    packing = packing_list(tmp_path)
    found = {f.name for f in packing.files}
    assert packing.own_packages
    assert {"mine.yaml", "launch/train.py", "launch/cluster/job.sh", "actors/engine.py"} <= found
    assert "trd_ray/testbed/models/student/model.safetensors" in found
    assert not any("__pycache__" in name or name.startswith(("tests/", "docs/")) for name in found)


def test_the_source_tree_is_its_own_package():
    packing = packing_list(ROOT)
    found = {f.name for f in packing.files}
    assert not packing.own_packages
    assert {
        "launch/train.py",
        "trd_ray/config.py",
        "actors/engine.py",
        "configs/experiment/trd_opd.yaml",
    } <= found
    assert not any(name.startswith((".git/", ".venv/", "runs/")) for name in found)
    assert packing.num_bytes < 50 * package.MIB


@pytest.mark.parametrize("namesake", ["launch/mine.py", "actors.py"])
def test_a_folder_that_would_hide_our_packages_is_refused(tmp_path: Path, namesake: str):
    put(tmp_path, namesake)
    with pytest.raises(ConfigError, match="name of a package of trd-ray"):
        packing_list(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="not a folder"):
        packing_list(tmp_path / "none")


def test_the_same_files_give_the_same_bytes(tmp_path: Path):
    folder = tmp_path / "folder"
    put(folder, "a", "sub/b")
    (folder / "a").chmod(0o755)
    for number in range(2):
        os.utime(folder / "a", (number * 1e9 + 1e9, 1e9))
        write_package(packing_list(folder), {"job.yaml": "run: {}\n"}, tmp_path / f"{number}.zip")
    assert (tmp_path / "0.zip").read_bytes() == (tmp_path / "1.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "0.zip") as written:
        assert written.read("job.yaml") == b"run: {}\n"
        assert written.read("sub/b") == b"x"
        assert written.getinfo("a").external_attr >> 16 & 0o111
        assert not written.getinfo("sub/b").external_attr >> 16 & 0o111
