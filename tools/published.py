"""Which models are published, where each is, what is claimed about it, and the images it is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from _tool import MANIFEST, METRICS, PACKED, PARAMS, SHOWN, Facts, parameters, read_json_if_there, say

from micronet.errors import shown
from micronet.front import ArgumentError

CLAIMS = METRICS / "score.json"
PIPELINES, RELEASE = Path("pipelines"), Path("release")
RECORD = "record"  # the root's own
MODELS = {  # beside it
    "dense": "few multiply-accumulates, for the slides' rules",
    "refined": "dense, trained further on mixed images",
    "glance": "the cascade's front network",
    "cascade": "glance, plus a second network for images it is unsure of",
    "deck": "the slides' own recipe, with a fraction of its epochs",
    "mnist": "handwritten digits; scores relative to its teacher",
}


@dataclass(frozen=True)
class Published:
    """Where a named model is, the file that makes claims about it, the params that made it, its data's manifest."""

    folder: Path  # these paths are relative to it, as for the stages
    file: Path
    params: Path
    claims: Path
    manifest: Path = MANIFEST


def claims_of(name: str, root: Path) -> tuple[Facts, Path] | None:
    """What is claimed about a model, by its pipeline once that has run, and the claiming file; None: nothing."""
    for path in (PIPELINES / name / CLAIMS, METRICS / name / CLAIMS.name):
        found = read_json_if_there(root / path, "dvc repro pipelines/dvc.yaml")
        if found is not None:
            return found, path
    return None


def published(name: str) -> Published:
    """The model of a pipeline once that has run, else the packed file in release/.

    A clone has no checkpoints of pipelines/: there, the published file is checked against the pipeline's claims.

    Raises:
        ArgumentError: there is neither.
    """
    pipelines = {path.parents[1].name for path in PIPELINES.glob(f"*/{CLAIMS}")}
    released = {path.stem for path in RELEASE.glob("*.safetensors") if (METRICS / path.stem / CLAIMS.name).is_file()}
    if name in pipelines:
        kept = RELEASE.resolve() / f"{name}.safetensors"
        file = kept if kept.is_file() and not (PIPELINES / name / PACKED).is_file() else PACKED
        return Published(PIPELINES / name, file, Path(PARAMS), CLAIMS)
    if name in released:
        metrics, file = METRICS / name, RELEASE / f"{name}.safetensors"
        manifest = Path("build/verify") / name / "manifest.json"
        return Published(Path(), file, metrics / PARAMS, metrics / CLAIMS.name, manifest)
    known = ", ".join(sorted(pipelines | released)) or "none is there"
    raise ArgumentError(f"NAME: there is no published model {shown(name, SHOWN)!r}; one of these would work: {known}")


def places() -> dict[str, Published]:
    """Where each published model is, the record first. Raises `ArgumentError`: one has claims but no file."""
    others = {name: published(name) for name in MODELS if claims_of(name, Path())}
    return {RECORD: Published(Path(), PACKED, Path(PARAMS), CLAIMS), **others}


def with_data(place: Published) -> parameters.Params:
    """The params of a model, its data prepared if its manifest is missing; called from the model's folder.

    Raises:
        MicronetError: the params are invalid, or the data is not available.
    """
    from micronet.data import store

    params = parameters.load(place.params)
    if not (place.manifest.is_file() and Path(params.data.folder).is_dir()):
        store.prepare(params.data, place.manifest, report=say)
    return params
