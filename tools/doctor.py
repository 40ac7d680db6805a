"""Checks what the pipeline depends on, and names the command that fixes whatever is wrong. Changes nothing.

Checked: Python, environment, params, data, the pipeline, results, caches, remotes, locks, disk, GPU, clock, git; the
network is not used. Exit code 1 when something is wrong. It also runs when packages are missing; the checks that need
them are skipped then.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import dvc_locks  # noqa: E402 - the lines above make it importable

from micronet.data.wording import counted  # noqa: E402
from micronet.errors import MicronetError, shown  # noqa: E402
from micronet.files import FileError, check_place, read_bytes  # noqa: E402
from micronet.front import Parser, front  # noqa: E402

if TYPE_CHECKING:
    from micronet import params as parameters

LOCK, PROJECT = ROOT / "requirements.lock", ROOT / "pyproject.toml"
MANIFEST = Path("data/manifest.json")
PIPELINE, METRICS = Path("dvc.yaml"), Path("metrics")
CHECKPOINTS = "checkpoints"  # everything else a stage writes is in git
CONFIGS = (Path(".dvc/config"), Path(".dvc/config.local"))  # the second takes precedence
SET_PATH = "set data.path in params.yaml"
RESTORE_CONFIG = f"git checkout -- {CONFIGS[0]}"
OLDEST_PYTHON = (3, 11)
LEAST_FREE = 1_000_000_000  # bytes: a recipe's data, states to resume from and results
AHEAD = 120  # seconds that a file or a commit may be ahead of the clock
PUBLISHED = "release"  # the remote in this repository
SHOWN = 100  # characters of a path, or of a library's message, in a line
NAMED = 3  # how many of several faulty things a line names


@dataclass(frozen=True)
class Finding:
    """What was checked, its state, and the command that fixes it if it is wrong."""

    name: str
    said: str
    mend: str = ""
    seen: bool = True  # False: what the check needs is missing

    @property
    def mark(self) -> str:
        return "WRONG" if self.mend else "ok" if self.seen else "-"


def python() -> Iterator[Finding]:
    """The Python version running this."""
    old = sys.version_info[:2] < OLDEST_PYTHON
    said = f"{platform.python_version()}, {sys.executable}"
    yield Finding("python", said + (": 3.11 or newer is needed" if old else ""), "make env PYTHON=python3.11" * old)


def environment() -> Iterator[Finding]:
    """Whether the packages are those of the lock."""
    installed = Path(sys.prefix) / "installed.lock"
    if not installed.is_file():
        missing = [name for name in _needed() if _version(name) is None]
        if sys.prefix == sys.base_prefix and missing:
            said = f"{sys.prefix}: is no environment, and lacks {_some(missing)}"
            yield Finding("environment", said, "make env, then: source .venv/bin/activate")
        elif missing:
            said = f"{sys.prefix}: one of your own lacks {_some(missing)}"
            yield Finding("environment", said, f"{sys.executable} -m pip install {' '.join(missing)}")
        else:
            said = f"{sys.prefix}: one of your own; make env builds .venv from requirements.lock"
            yield Finding("environment", said)
        return
    try:
        same = read_bytes(installed) == read_bytes(LOCK)
    except FileError as error:
        yield Finding("environment", str(error), f"git checkout -- {LOCK.name}")
        return
    if not same:
        yield Finding("environment", f"{sys.prefix}: not of requirements.lock", "make env")
        return
    pins = re.findall(r"^([\w.-]+)==([\w.+-]+)$", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    other = [f"{name} {pin}" for name, pin in pins if (_version(name) or "").partition("+")[0] != pin.partition("+")[0]]
    if other:
        said = f"{sys.prefix}: has not {_some(other)} of requirements.lock"
        yield Finding("environment", said, f"rm {installed} && make env")
    else:
        yield Finding("environment", f"{sys.prefix}: of requirements.lock")


def _needed() -> list[str]:
    """The packages that pyproject.toml names."""
    text = PROJECT.read_text(encoding="utf-8").partition("dependencies = [")[2].partition("\n]")[0]
    return re.findall(r'"([\w.-]+)', text)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(shown(name, SHOWN) for name in names[:NAMED]) + more


def params_and_data(path: str) -> Iterator[Finding]:
    """The params file, and the data it names."""
    from micronet import params as parameters

    if not Path(path).exists():
        yield Finding("params", f"{shown(path, SHOWN)}: there is no such file", "make use RECIPE=demo")
        return
    try:
        config = parameters.load(path)
    except parameters.ParamsError as error:
        more = f" (and {len(error.faults) - 1} more)" if len(error.faults) > 1 else ""
        yield Finding("params", error.faults[0] + more, "make check")
        return
    yield Finding("params", f"{shown(path, SHOWN)}: data.source {config.data.source}")
    yield from data(config.data)
    yield from gpu(config.engine.device)


def data(config: parameters.Data) -> Iterator[Finding]:
    """The manifest, the prepared folder, and the pictures it was made from."""
    from micronet.data import store
    from micronet.data.arrays import DataError

    again = store.MAKE
    if not Path(config.folder).exists():
        yield Finding("data", f"{shown(config.folder, SHOWN)}: not yet; make score fetches what it needs", seen=False)
        if config.source == "folder" and not Path(config.path).exists():
            yield Finding("pictures", f"{shown(config.path, SHOWN)}: is not here", SET_PATH)
        return
    try:
        manifest = store.check_manifest(config, MANIFEST)
    except DataError as error:
        yield Finding("manifest", str(error), again)
        return
    sizes = ", ".join(f"{manifest['splits'][name]['images']:,} {name}" for name in store.SPLITS)
    shape = " x ".join(map(str, manifest["image_shape"]))
    yield Finding("manifest", f"{manifest['dataset']}, {len(manifest['classes'])} classes, {shape}: {sizes}")
    fault = store.folder_fault(config, manifest)
    yield Finding("data", f"{config.folder}: {fault or 'is whole'}", again if fault else "")
    if config.source == "folder":
        yield from _own(config)


def _own(config: parameters.Data) -> Iterator[Finding]:
    from micronet.data import store
    from micronet.data.arrays import DataError
    from micronet.data.datasets import pictures, standing_in

    path, way_out = shown(config.path, SHOWN), SET_PATH
    try:
        if line := standing_in(config):
            yield Finding("pictures", line)
        elif pictures(config) is None:
            yield Finding("pictures", f"{path}: is not here, and nothing was prepared of it", way_out)
        elif store.changed(config):
            yield Finding("pictures", f"{path}: have changed since they were prepared", store.MAKE)
        else:
            found = ", ".join(
                f"{shown(key, SHOWN)} {shown(value, SHOWN)}" for key, value in store.facts(config).items()
            )
            yield Finding("pictures", f"{path}: as they were prepared" + (f"; {found}" if found else ""))
    except DataError as error:
        yield Finding("pictures", str(error), way_out)


def pipeline() -> Iterator[Finding]:
    """Whether dvc.yaml has stages."""
    from micronet import reading

    way, path = f"git checkout -- {PIPELINE}", str(PIPELINE)
    try:
        tree = reading.read(path)
    except reading.UnreadableError as error:
        said = f"{path}: there is no such file" if not PIPELINE.exists() else str(error)
        yield Finding("pipeline", said, way)
        return
    stages = tree.get("stages") if isinstance(tree, dict) else None
    if isinstance(stages, dict) and stages:
        yield Finding("pipeline", f"{path}: {counted(len(stages), 'stage')}")
    else:
        yield Finding("pipeline", f"{path}: names no stages", way)


def results() -> Iterator[Finding]:
    """Whether the stages' measurements can be read."""
    there = sorted(METRICS.glob("*.json"))
    damaged = [path for path in there if not _is_json_object(path)]
    if damaged:
        known = [path for path in damaged if _git("ls-files", "--error-unmatch", str(path)) is not None]
        way = f"git checkout -- {shlex.join(map(str, known))}" if known else f"rm {shlex.join(map(str, damaged))}"
        said = f"{_some([str(path) for path in damaged])}: no JSON object"
        yield Finding("results", said, way)
    else:
        yield Finding("results", f"{METRICS}: {counted(len(there), 'file')}, none is damaged")


def _is_json_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(read_bytes(path)), dict)
    except (FileError, ValueError, RecursionError):
        return False


def cache() -> Iterator[Finding]:
    """Where downloads are kept, and DVC's cache of results."""
    yield _downloads()
    import restored

    if not restored.LOCK.is_file():
        return
    try:
        damaged = [output for output in restored.outputs() if not _whole(output, output.object_in(restored.CACHE))]
    except restored.RestoreError as error:
        yield Finding("dvc cache", str(error), f"git checkout -- {restored.LOCK}")
        return
    if damaged:
        names = _some([str(output.path) for output in damaged])
        yield Finding("dvc cache", f"{restored.CACHE.parents[1]}: its copy of {names} is damaged", "make repro")
    else:
        yield Finding("dvc cache", f"{restored.CACHE.parents[1]}: nothing in it is damaged")


def _whole(output: object, path: Path) -> bool:
    """Whether a cached object matches its name, or is absent."""
    return not path.exists() or output.is_right(path)  # type: ignore[attr-defined]


def _downloads() -> Finding:
    from micronet.data.cache import cache_folder, cache_size

    folder, elsewhere = cache_folder(), "export XDG_CACHE_HOME=A_FOLDER_OF_YOURS"
    if folder is None:
        return Finding("cache", "there is no home folder: downloads are not kept", elsewhere)
    try:
        check_place(folder)
    except FileError as error:
        return Finding("cache", str(error), elsewhere)
    return Finding("cache", f"{folder}: {cache_size() / 1e6:,.0f} MB")


def remote() -> Iterator[Finding]:
    """The remotes that are folders: whether they exist, and whether the published one is intact."""
    settings = configparser.ConfigParser(interpolation=None, strict=False)
    for path, way in zip(CONFIGS, (RESTORE_CONFIG, f"rm {CONFIGS[1]}"), strict=True):
        try:
            settings.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeError) as error:
            said = shown(" ".join(str(error).split()), SHOWN)
            yield Finding("remote", f"{path}: cannot be read ({said})", way)
            return
    urls = {
        section.strip("'")[len('remote "') : -1]: settings[section].get("url", "")
        for section in settings.sections()
        if section.strip("'").startswith('remote "')
    }
    default = settings.get("core", "remote", fallback="")
    if default and default not in urls:
        said = f"{shown(default, SHOWN)}, the default, is no remote that there is"
        yield Finding("remote", said, "dvc remote default --unset" + " --local" * CONFIGS[1].is_file())
    if PUBLISHED not in urls:
        yield Finding("remote", f"{CONFIGS[0]}: does not know the published one", RESTORE_CONFIG)
    for name, url in urls.items():
        if url and "://" not in url:
            yield _folder_remote(name, Path(os.path.normpath(CONFIGS[0].parent / url)))
        else:
            yield Finding("remote", f"{shown(name, SHOWN)} ({shown(url, SHOWN)}): not asked; dvc status --cloud does")


def _folder_remote(name: str, folder: Path) -> Finding:
    import restored

    said, published = f"{shown(name, SHOWN)} ({shown(folder, SHOWN)})", restored.REMOTE.parents[1]
    ours = folder == published
    if not os.access(folder, os.R_OK | os.X_OK) or not folder.is_dir():
        way = f"git checkout -- {folder}" if ours else f"mkdir -p {shlex.quote(str(folder))}"
        return Finding("remote", f"{said}: cannot be read", RESTORE_CONFIG if name == PUBLISHED and not ours else way)
    try:
        named = list(restored.outputs()) if restored.LOCK.is_file() else []
    except restored.RestoreError:  # a damaged lock, which the cache check reports
        named = []
    if not named:
        return Finding("remote", f"{said}: is there")
    objects = [(output.object_in(folder / "files/md5"), output) for output in named]
    damaged = [str(one) for one, output in objects if not _whole(output, one)]
    if damaged:
        way = f"git checkout -- {folder}" if ours else f"rm {damaged[0]} && dvc push --remote {name}"
        return Finding("remote", f"{said}: {_some(damaged)} is damaged", way)
    checkpoints = (one for one, output in objects if output.path.parts[0] == CHECKPOINTS)
    lacking = len({one for one in checkpoints if not one.exists()})
    lacks = f"; lacks {counted(lacking, 'checkpoint')} of these params" if lacking else ""
    return Finding("remote", f"{said}: is whole{lacks}")


def locks() -> Iterator[Finding]:
    """What a killed DVC or git left behind."""
    fault, mend = dvc_locks.look()
    git = Path(".git/index.lock")
    if fault:
        yield Finding("locks", fault, mend)
    elif git.exists() and time.time() - git.stat().st_mtime > 60:
        yield Finding("locks", f"{git}: was left by a git that was killed", f"rm {git}")
    else:
        running = dvc_locks.others_here()
        yield Finding("locks", f"DVC runs here as process {running[0]}" if running else "none is left behind")


def disk() -> Iterator[Finding]:
    """Free space, and whether this folder is writable."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    said = f"{free / 1e9:,.1f} GB are free for {here}"
    if not os.access(here, os.W_OK | os.X_OK):
        yield Finding("disk", f"{here}: cannot be written", f"sudo chown -R $(id -u) {here}")
    elif free < LEAST_FREE:
        yield Finding("disk", f"{said}; {LEAST_FREE / 1e9:g} GB are needed", "make clean; dvc gc --workspace")
    else:
        yield Finding("disk", said)


def gpu(device: str) -> Iterator[Finding]:
    """Whether torch sees the GPU that `engine.device` asks for, or any."""
    there = [path.name for path in Path("/dev").glob("nvidia[0-9]*")]
    if device == "cpu" or (device == "auto" and not there):
        yield Finding("gpu", f"engine.device {device}: the processor trains" + (", a GPU is there" if there else ""))
        return
    seen = visible_gpus()
    if seen:
        yield Finding("gpu", f"engine.device {device}: torch sees {', '.join(seen)}")
    elif device == "cuda" and not there:
        yield Finding("gpu", "engine.device cuda: there is no GPU here", "set engine.device: auto in params.yaml")
    else:
        way = f"nvidia-smi says whether its driver works; {sys.executable} -m pip install torch one of CUDA"
        yield Finding("gpu", f"engine.device {device}: torch sees none, and {_some(there)} is there", way)


def visible_gpus() -> list[str]:
    """The GPUs torch can use."""
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def clock() -> Iterator[Finding]:
    """Whether time runs forward: resuming, make and DVC compare file dates."""
    now, said = time.time(), time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    committed = _git("log", "-1", "--format=%ct")
    begun = LOCK.stat().st_ctime if LOCK.exists() else now
    if now < begun - AHEAD or (committed or "").isdigit() and now < int(committed or 0) - AHEAD:
        yield Finding("clock", f"{said} is before the last commit", "sudo timedatectl set-ntp true")
        return
    names = (*CONFIGS, Path("params.yaml"), Path("dvc.yaml"), Path("dvc.lock"), MANIFEST)
    ahead = [str(path) for path in names if path.exists() and path.stat().st_mtime > now + AHEAD]
    if ahead:
        yield Finding("clock", f"{said}; {_some(ahead)} is from the future", f"touch {' '.join(ahead)}")
    else:
        yield Finding("clock", said)


def git() -> Iterator[Finding]:
    """Whether commits can be read: a run's record names the commit that made it."""
    if shutil.which("git") is None:
        yield Finding("git", "is not installed", "sudo apt-get install git (on macOS: xcode-select --install)")
        return
    head = _git("rev-parse", "--short=12", "HEAD")
    if not Path(".git").exists():
        yield Finding("git", "no repository here: runs name no commit, branches and dvc exp are not there")
    elif head is None:
        yield _broken()
    elif unmerged := _git("diff", "--name-only", "--diff-filter=U"):
        yield Finding("git", f"a merge stopped at {_some(unmerged.splitlines())}", "git merge --abort, or git status")
    else:
        changed = len((_git("status", "--porcelain", "--untracked-files=no") or "").splitlines())
        yield Finding("git", f"{head}, {counted(changed, 'changed file') if changed else 'nothing changed'}")


def _broken() -> Finding:
    """Why git gives no commit."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if "dubious ownership" in done.stderr:
        return Finding("git", "the folder is another user's", f"git config --global --add safe.directory {Path.cwd()}")
    if Path(".git/HEAD").is_file() and _git("rev-parse", "--git-dir") is not None:
        return Finding("git", "has no commit yet", "git add . && git commit -m start")
    return Finding("git", ".git: is damaged", "git fsck says where; a fresh clone would work")


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def findings(path: str) -> Iterator[Finding]:
    """All findings for a params file. What missing packages prevent is said, but not as an error."""
    looks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("python", python),
        ("environment", environment),
        ("params", lambda: params_and_data(path)),
        ("pipeline", pipeline),
        ("results", results),
        ("cache", cache),
        ("remote", remote),
        ("locks", locks),
        ("disk", disk),
        ("clock", clock),
        ("git", git),
    )
    for name, look in looks:
        try:
            yield from map(_typed, look())
        except ImportError as error:
            yield Finding(name, f"not looked at: {shown(error, SHOWN)}", seen=False)
        except (MicronetError, OSError, ValueError) as error:
            yield Finding(name, f"cannot be looked at ({shown(error, SHOWN)})", "make clean, or a fresh clone")


def _typed(one: Finding) -> Finding:
    """A finding whose commands work in a shell without an environment on its path."""
    ours = shlex.quote(_python())
    said, mend = (re.sub(r"(?<![\w/.])python (?=stages/)", f"{ours} ", text) for text in (one.said, one.mend))
    return replace(one, said=said, mend=re.sub(r"(^|[;&] )dvc ", rf"\1{ours} -m dvc ", mend))


def _python() -> str:
    """The environment's Python, as typed here."""
    if sys.prefix == sys.base_prefix:
        return ".venv/bin/python"
    here = Path(sys.executable)
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)


def told(one: Finding, width: int) -> str:
    """A finding as text, in as many lines as it takes."""
    head = f"{one.mark:<6} {one.name:<12} "
    indent = " " * (len(head) if width >= 60 else 4)

    def lines(first: str, text: str) -> str:
        kept = {"break_long_words": False, "break_on_hyphens": False}
        return textwrap.fill(text, max(30, width), initial_indent=first, subsequent_indent=indent, **kept)

    said = lines(head, shown(one.said))
    return f"{said}\n{lines(f'{indent}mend it with: ', shown(one.mend))}" if one.mend else said


def examine(path: str) -> int:
    """Prints findings as they come. Returns the exit code."""
    width, wrong, count = shutil.get_terminal_size((80, 24)).columns - 1, 0, 0
    for one in findings(path):
        print(told(one, width), flush=True)
        wrong, count = wrong + bool(one.mend), count + 1
    print(f"doctor: {wrong} of {count} are wrong" if wrong else "doctor: nothing is wrong")
    return 1 if wrong else 0


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="doctor", description=__doc__)
    parser.add_argument("--params", default="params.yaml", metavar="PATH", help="for the data; default: %(default)s")
    arguments = parser.parse_args(argv)
    return front("doctor", lambda: examine(arguments.params))


if __name__ == "__main__":
    sys.exit(main())
