"""What travels with a job: one zip file that becomes the job's working directory.

It holds the folder that was named, less what is never of use there; the files that the configuration
names by a relative path, whatever else is left out; trd-ray's own packages, so that the cluster needs its
dependencies only; and the resolved configuration. The same files give the same bytes, so that Ray, which
names packages by their checksum, sends and unpacks them once.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

import launch
from trd_ray.errors import ConfigError, describe

MIB = 2**20
MOST_BYTES = 200 * MIB
"""Ray keeps packages in the memory of the head, 512 MiB at most each."""
LARGE_WEIGHTS_BYTES = 8 * MIB

OWN_PACKAGES = ("trd_ray", "actors", "launch")
_OWN_MARKS = ("trd_ray/config.py", "actors/engine.py", "launch/train.py")
_IGNORE_FILES = (".gitignore", ".rayignore")
_NEVER = (
    ".git", ".hg", ".svn", "__pycache__/", "*.pyc", ".venv/", "node_modules/", "*.egg-info/", "/runs/",
    ".cache/", ".mypy_cache/", ".ruff_cache/", ".pytest_cache/", ".import_linter_cache/", ".hypothesis/",
    ".ipynb_checkpoints/", ".DS_Store",
)  # fmt: skip
_SECRETS = (
    ".env", ".env.*", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".netrc", ".npmrc", ".pypirc", ".ssh/",
    ".aws/", ".kube/", ".ray/", ".docker/", ".gnupg/", "auth_token", "credentials*.json",
)  # fmt: skip
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")
# A zip file cannot hold an earlier time, and a later one would change the checksum with each packing.
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedFile:
    """One file, and its name in the job's working directory."""

    source: Path
    name: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """One file or folder that stays here, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PackingList:
    """What travels and what does not."""

    files: tuple[PackedFile, ...]
    left_out: tuple[LeftOut, ...]
    own_packages: bool
    """trd-ray's packages were added, since the folder has none."""

    @property
    def num_bytes(self) -> int:
        """Before compression."""
        return sum(file.num_bytes for file in self.files)


def packing_list(folder: Path, *, needed: Sequence[Path] = (), excludes: Sequence[str] = ()) -> PackingList:
    """Choose the files.

    Args:
        needed: files and folders inside of `folder` that travel whatever is left out.
        excludes: patterns as in a .gitignore file, beside those that are always left out.

    Raises `ConfigError`: the folder is missing, has another package of the name of one of ours, or more
    would travel than `MOST_BYTES`.
    """
    require_folder(folder)
    walk = _Walk(folder, _rules(excludes))
    for path in needed:
        walk.take_whole(path)
    walk.take_chosen(folder)
    own = not _holds_own(folder)
    if own:
        _refuse_namesakes(folder)
        source = Path(launch.__file__).parents[1]
        packages = _Walk(source, _rules(()))
        for name in OWN_PACKAGES:
            packages.take_chosen(source / name)
        walk.files |= packages.files
    files = tuple(walk.files[name] for name in sorted(walk.files))
    return PackingList(files=files, left_out=tuple(walk.left_out), own_packages=own)


def require_folder(folder: Path) -> None:
    """Raises `ConfigError` if there is no such folder."""
    if not folder.is_dir():
        raise ConfigError(
            describe(
                "the working directory is not a folder", where="--working-dir", got=folder,
                expected="a folder", remedy="correct the path",
            )
        )  # fmt: skip


def write_package(packing: PackingList, extra: Mapping[str, str], path: Path) -> None:
    """Write the zip file.

    Args:
        extra: further files: their names and texts.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for file in packing.files:
            executable = bool(file.source.stat().st_mode & stat.S_IXUSR)
            package.writestr(_entry(file.name, executable=executable), file.source.read_bytes())
        for name, text in sorted(extra.items()):
            package.writestr(_entry(name, executable=False), text)


def _entry(name: str, *, executable: bool) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=_TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
    return entry


def _rules(excludes: Sequence[str]) -> GitIgnoreSpec:
    return GitIgnoreSpec.from_lines([*_NEVER, *excludes, *_SECRETS])


def _holds_own(folder: Path) -> bool:
    return all((folder / mark).is_file() for mark in _OWN_MARKS)


def _refuse_namesakes(folder: Path) -> None:
    """The working directory comes first where Python looks for packages."""
    for name in OWN_PACKAGES:
        if (folder / name).exists() or (folder / f"{name}.py").exists():
            raise ConfigError(
                describe(
                    "the working directory has something with the name of a package of trd-ray",
                    where=f"--working-dir {folder}",
                    got=name,
                    expected=f"none of {', '.join(OWN_PACKAGES)}, or trd-ray's whole source tree",
                    remedy="rename it, or name another folder in --working-dir",
                )
            )


class _Walk:
    """The files of one folder, by their names in the package."""

    def __init__(self, folder: Path, rules: GitIgnoreSpec) -> None:
        self._folder = folder
        self._rules = rules
        self._num_bytes = 0
        self.files: dict[str, PackedFile] = {}
        self.left_out: list[LeftOut] = []

    def take_whole(self, path: Path) -> None:
        """A file, or all files below a folder; links are followed."""
        if path.is_file():
            self._take(path, path.stat())
            return
        for parent, _, names in os.walk(path, followlinks=True):
            for name in sorted(names):
                file = Path(parent) / name
                if file.is_file():
                    self._take(file, file.stat())

    def take_chosen(self, folder: Path, ignores: tuple[tuple[Path, GitIgnoreSpec], ...] = ()) -> None:
        """All below a folder that no rule leaves out.

        Args:
            ignores: the rules of ignore files above, each with the folder that they count from.
        """
        ignores += tuple(_ignore_files(folder))
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            path = Path(entry.path)
            is_folder = entry.is_dir(follow_symlinks=False)
            name = self._name(path)
            if name in self.files:
                continue
            reason = self._reason(path, is_folder=is_folder, ignores=ignores)
            if reason is not None:
                shown = os.fsencode(name).decode(errors="replace")
                self.left_out.append(LeftOut(name=f"{shown}/" if is_folder else shown, reason=reason))
            elif is_folder:
                self.take_chosen(path, ignores)
            else:
                self._take(path, path.stat())

    def _reason(
        self, path: Path, *, is_folder: bool, ignores: tuple[tuple[Path, GitIgnoreSpec], ...]
    ) -> str | None:
        """Why a file or folder stays here; None if it travels."""
        slash = "/" if is_folder else ""
        if self._rules.match_file(self._name(path) + slash):
            return "never sent, or excluded"
        for base, spec in ignores:
            if spec.match_file(path.relative_to(base).as_posix() + slash):
                return f"ignored in {self._name(base) if base != self._folder else '.'}"
        if is_folder:
            return _folder_reason(path)
        if not path.is_file():
            return "no file: a broken link, a link to a folder, or a socket"
        if not _is_text(path.name):
            return "its name is not UTF-8"
        if path.suffix in _WEIGHTS and path.stat().st_size > LARGE_WEIGHTS_BYTES:
            return "weights that the configuration does not use"
        return None

    def _take(self, path: Path, facts: os.stat_result) -> None:
        self.files[self._name(path)] = PackedFile(source=path, name=self._name(path), num_bytes=facts.st_size)
        self._num_bytes += facts.st_size
        if self._num_bytes > MOST_BYTES:
            raise _too_large(self._folder, self.files.values())

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _folder_reason(path: Path) -> str | None:
    if not _is_text(path.name):
        return "its name is not UTF-8"
    if (path / "pyvenv.cfg").exists():
        return "a Python environment"
    if (path / "metrics.jsonl").exists() and (path / "trajectories").exists():
        return "a run folder"
    return None


def _ignore_files(folder: Path) -> Iterator[tuple[Path, GitIgnoreSpec]]:
    for name in _IGNORE_FILES:
        file = folder / name
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            yield folder, GitIgnoreSpec.from_lines(lines)


def _too_large(folder: Path, files: Iterable[PackedFile]) -> ConfigError:
    largest = sorted(files, key=lambda file: -file.num_bytes)[:5]
    return ConfigError(
        describe(
            f"the working directory is too large to be sent with a job: more than {MOST_BYTES // MIB} MiB",
            where=f"--working-dir {folder}",
            got="among others " + ", ".join(f"{f.name} ({f.num_bytes / MIB:,.1f} MiB)" for f in largest),
            expected="code, configuration and small data",
            remedy="put large models and data where every node sees them and give their absolute paths; "
            "leave others out with --exclude PATTERN or a .rayignore file",
        )
    )
