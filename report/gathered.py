"""What is known about a run: every available results file, and a line for each that cannot be read."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from micronet import reading
from micronet.errors import MicronetError, shown
from micronet.packed.errors import PackedFileError
from micronet.packed.file import decode
from micronet.packed.model import PackedModel
from micronet.pipeline import STAGES
from report.errors import ReportError, UnknownName
from report.sources import Source

OF_A_RUN = ("runs", "curves", "sweeps")  # folders of metrics/ that belong to no model
ROOT_MODEL = "record"  # the root model's name among the others
MOST_IMAGES = 1_000_000_000
PACKED = "checkpoints/quantized.safetensors"
Content = TypeVar("Content")
Row = dict[str, str]


@dataclass(frozen=True)
class Places:
    """Where a model's files are, from the repository's root; the first that exists counts."""

    metrics: str
    params: str
    packed: tuple[str, ...]
    is_root: bool = False
    pipeline: str = ""  # its name in pipelines/dvc.yaml, if it is there
    recipe: str = ""  # in recipes/, if one has that name

    @property
    def home(self) -> str:
        """The folder its stages run in, from the repository's root: paths in its params start there."""
        parts = Path(self.params).parts
        return "/".join(parts[:2]) if parts[0] == "pipelines" else "."

    @classmethod
    def of(cls, name: str, source: Source) -> Places:
        """The places of a model by name, empty for the one at the root.

        Raises:
            ReportError: there is no such model; names some that exist.
        """
        if not name:
            return cls("metrics", "params.yaml", (PACKED,), is_root=True)
        kept = (f"release/{name}.safetensors", f"pipelines/{name}/{PACKED}")
        is_name = re.fullmatch(r"[\w-]+", name) and name not in OF_A_RUN  # and not a path to elsewhere
        for folder in (f"pipelines/{name}/metrics", f"metrics/{name}") if is_name else ():
            there = source.names(folder)
            if "score.json" in there:
                pipeline = name if "params.yaml" in source.names(f"pipelines/{name}") else ""
                own = "params.yaml" in there or not pipeline
                params = f"{folder}/params.yaml" if own else f"pipelines/{name}/params.yaml"
                recipe = name if f"{name}.yaml" in source.names("recipes") else ""
                return cls(folder, params, kept, pipeline=pipeline, recipe=recipe)
        known = sorted({name for name, _ in _scores(source)} - {ROOT_MODEL})
        some = f"; {', '.join(known)} have" if known else ""
        raise UnknownName(f"NAME: {shown(name, 60)} has no score in metrics/ or pipelines/{some}")


def models_in(source: Source, folder: str, inner: str = "") -> Iterator[str]:
    """The names below a folder that have a `score.json`."""
    for name in source.names(folder):
        if name not in OF_A_RUN and "." not in name and "score.json" in source.names(f"{folder}/{name}{inner}"):
            yield name


@dataclass
class Run:
    """The results of a model, each None or empty if its file is missing or cannot be read."""

    name: str  # of a revision, or of the model
    commit: str | None
    places: Places
    faults: list[str] = field(default_factory=list)
    score: dict[str, Any] | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    path: list[Row] = field(default_factory=list)
    curves: dict[str, list[Row]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)  # metrics/runs
    params: dict[str, Any] | None = None
    manifest: dict[str, Any] | None = None
    manifest_sha256: str = ""  # of its file; empty if there is none
    seeds: dict[str, Any] | None = None
    others: dict[str, dict[str, Any]] = field(default_factory=dict)  # the scores of the other models
    releases: list[Row] = field(default_factory=list)
    sweeps: dict[str, list[Row]] = field(default_factory=dict)
    predictions: list[Row] = field(default_factory=list)
    model: PackedModel | None = None
    packed: bytes = b""
    packed_path: str = PACKED  # empty: the released one, from DVC's cache

    @property
    def test_images(self) -> int | None:
        """How many images the accuracy was measured on; None: neither the data nor the answers say."""
        return self.counted_images or len(self.predictions) or None

    @property
    def counted_images(self) -> int | None:
        """How many test images the data has, if known."""
        counted = self.stages.get("prepare_data", {}).get("test_images")
        if counted is None and self._is_of_the_data:
            counted = ((self.manifest or {}).get("splits", {}).get("test") or {}).get("images")
        is_count = isinstance(counted, int) and not isinstance(counted, bool) and 0 < counted <= MOST_IMAGES
        return counted if is_count else None

    @property
    def _is_of_the_data(self) -> bool:
        """Whether the manifest can be this model's: the prepared data may be another's."""
        return self.model is None or (self.manifest or {}).get("classes") == list(self.model.class_names)

    @property
    def reference(self) -> str | None:
        """What the scores are relative to; None: each rule book's CIFAR-10 reference."""
        named = (self.score or {}).get("reference")
        return named.get("name") if isinstance(named, dict) else None


def gather(source: Source, name: str, commit: str | None = None, model: str = "") -> Run:
    """Reads all available results of a run.

    Args:
        name: its name on the page.
        model: a model other than the root's own.

    Raises:
        ReportError: there is no such model.
    """
    places = Places.of(model, source)
    run = Run(name, commit, places)
    reader = _Reader(source, run.faults)
    at = places.metrics
    run.score = reader.json(f"{at}/score.json")
    for stage in STAGES:
        for found, path in ((run.stages, f"{at}/{stage}.json"), (run.records, f"{at}/runs/{stage}.json")):
            content = reader.json(path) if stage != "score" or found is run.records else None
            if content is not None:
                found[stage] = content
        rows = reader.csv(f"{at}/curves/{stage}.csv")
        if rows:
            run.curves[stage] = rows
    run.path = reader.csv(f"{at}/path.csv")
    run.predictions = reader.csv(f"{at}/predictions.csv")
    run.seeds = reader.json(f"{at}/seeds.json")
    run.params = reader.yaml(places.params)
    own = f"{Path(at).parent}/data/manifest.json"
    described = own if at.startswith("pipelines/") else "data/manifest.json"
    run.manifest = reader.json(described)
    if run.manifest is not None:
        run.manifest_sha256 = hashlib.sha256(reader.content(described) or b"").hexdigest()
    if not model:
        run.releases = reader.csv(f"{at}/releases.csv")
        for file in source.names(f"{at}/sweeps"):
            if file.endswith(".csv"):
                run.sweeps[file.removesuffix(".csv")] = reader.csv(f"{at}/sweeps/{file}")
    for name, path in _scores(source):
        if name != (model or ROOT_MODEL) and (content := reader.json(path)) is not None:
            run.others[name] = content
    _read_packed(run, reader)
    return run


def params_of(source: Source, model: str = "") -> dict[str, Any] | None:
    """The params of a model; None if none can be read."""
    try:
        return _Reader(source, []).yaml(Places.of(model, source).params)
    except ReportError:
        return None


def _scores(source: Source) -> Iterator[tuple[str, str]]:
    """A checkout's models and where their scores are: in its pipeline's folder, if that has run."""
    kept = {name: f"metrics/{name}/score.json" for name in models_in(source, "metrics")}
    made = {name: f"pipelines/{name}/metrics/score.json" for name in models_in(source, "pipelines", "/metrics")}
    root = {ROOT_MODEL: "metrics/score.json"} if "score.json" in source.names("metrics") else {}
    yield from (root | kept | made).items()


def _read_packed(run: Run, reader: _Reader) -> None:
    """The packed file of `score.json`: from its place, or from the published cache."""
    packed = (run.score or {}).get("packed")
    claimed = packed.get("sha256") if isinstance(packed, dict) else None
    other = ""
    cache = reader.published(PACKED) if run.places.is_root else []  # dvc.lock only lists the root's file
    for path in (*run.places.packed, *cache):
        data = reader.content(path)
        if data is None:
            continue
        if claimed is not None and hashlib.sha256(data).hexdigest() != claimed:
            other = path
            continue
        try:
            run.model, run.packed, run.packed_path = decode(data), data, "" if path in cache else path
        except PackedFileError as error:
            run.faults.append(f"{shown(_named(path, cache), 100)}: {error}")
        return
    if other:
        name = shown(_named(other, cache), 100)
        run.faults.append(f"{name}: is another file than the one that {run.places.metrics}/score.json names")


def _named(path: str, cache: list[str]) -> str:
    """A packed file's display name: a path in the cache says nothing to a reader."""
    return "the released file" if path in cache else path


class _Reader:
    """Reads files of a source, and records a line for each damaged one."""

    def __init__(self, source: Source, faults: list[str]) -> None:
        self._source, self._faults = source, faults

    def content(self, path: str) -> bytes | None:
        return self._noted(path, lambda data: data)

    def json(self, path: str) -> dict[str, Any] | None:
        def parsed(data: bytes) -> dict[str, Any]:
            content = json.loads(data)
            if not isinstance(content, dict):
                raise ValueError("no JSON object")
            return content

        return self._noted(path, parsed)

    def csv(self, path: str) -> list[Row]:
        def parsed(data: bytes) -> list[Row]:
            rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
            if any(None in row or None in row.values() for row in rows):
                raise ValueError("a row has another number of cells than the heading")
            return rows

        return self._noted(path, parsed) or []

    def yaml(self, path: str) -> dict[str, Any] | None:
        return self._noted(path, settings)

    def published(self, path: str) -> list[str]:
        """Where the cache in the repository holds a pipeline output, according to `dvc.lock`."""
        try:
            lock = settings(self._source.content("dvc.lock") or b"{}")
            outs = [out for stage in lock.get("stages", {}).values() for out in stage.get("outs", [])]
            digests = [str(out["md5"]) for out in outs if out.get("path") == path]
        except (MicronetError, LookupError, TypeError, ValueError, AttributeError):
            return []
        return [f"release/cache/files/md5/{digest[:2]}/{digest[2:]}" for digest in digests if digest.isalnum()]

    def _noted(self, path: str, parse: Callable[[bytes], Content]) -> Content | None:
        try:
            data = self._source.content(path)
            return None if data is None else parse(data)
        except ReportError as error:
            said = str(error)
            self._faults.append(shown(said if said.startswith(path) else f"{path}: {said}"))
        except (ValueError, RecursionError, csv.Error) as error:
            self._faults.append(f"{shown(path, 100)}: cannot be read ({shown(' '.join(str(error).split()), 100)})")
        return None


def settings(data: bytes) -> dict[str, Any]:
    """The tree of a params file. Raises `ReportError`."""
    try:
        tree = reading.parse(data, "params.yaml")
    except reading.UnreadableError as error:
        raise ReportError(str(error).removeprefix("params.yaml: ")) from None
    return tree if isinstance(tree, dict) else {}
