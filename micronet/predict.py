"""Classifies pictures with a packed model on the command line: from its file alone, without its training data."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from micronet.data.arrays import DataError
from micronet.data.folder import pictures_in
from micronet.data.pictures import Fit, PlainFormat, Unreadable
from micronet.data.pictures import read as read_picture
from micronet.data.progress import progress_bar
from micronet.errors import MicronetError, shown
from micronet.front import Parser, front, without_prompt
from micronet.packed.file import read as read_packed
from micronet.packed.model import FIT
from micronet.packed.reference import margins, predict, run

if TYPE_CHECKING:
    from micronet.packed.model import PackedModel

FITS: tuple[Fit, ...] = get_args(Fit)
TOGETHER = 50  # pictures in memory at once
NAME = 100  # characters of a picture's name


class PredictError(MicronetError):
    """A packed model does not take pictures."""


@dataclass(frozen=True)
class Candidate:
    """A class that a picture may be of."""

    name: str
    label: int
    confidence: float | None  # 0 to 1; None: the file does not give the scale of its logits

    def as_json(self) -> dict[str, Any]:
        confidence = None if self.confidence is None else round(self.confidence, 6)
        return {"class": self.name, "label": self.label, "confidence": confidence}


@dataclass(frozen=True)
class Answer:
    """What a picture shows, likeliest class first, or why it cannot be read."""

    picture: str
    candidates: tuple[Candidate, ...] = ()
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        if self.error:
            return {"picture": self.picture, "error": self.error}
        top = [candidate.as_json() for candidate in self.candidates]
        return {"picture": self.picture, **top[0], "top": top}


def main(argv: list[str] | None = None) -> int:
    """`python -m micronet.predict FILE IMAGE...`: what a packed model sees in pictures, with its confidence.

    The confidence is the softmax of the logits; the mean of both passes' logits where a picture was seen mirrored too.
    """
    parser = Parser(name="predict", prog="python -m micronet.predict", description=(main.__doc__ or "").split("\n")[0])
    parser.add_argument("file", metavar="FILE", help="packed model, as stages/quantize.py writes it")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a picture, or a folder of pictures")
    parser.add_argument("--top", type=_count, default=1, metavar="N", help="name the N likeliest classes (default 1)")
    parser.add_argument("--fit", choices=FITS, help="how to fit a picture to the network's size (default: the file's)")
    parser.add_argument("--json", action="store_true", help="print JSON, one object per picture")
    return front("predict", partial(_predict, parser.parse_args(argv)))


def _count(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or not 1 <= len(text) <= 6 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0 (got {shown(text, 60)})")
    return int(text)


def _predict(arguments: argparse.Namespace) -> int:
    """Classifies the pictures, and reports those that cannot be read. Returns the exit code."""
    model = read_packed(arguments.file)
    form = form_of(model, arguments.fit)
    pictures = _pictures(arguments.images)
    with progress_bar("looking at pictures", len(pictures), "pictures", _say) as update:
        answers: list[Answer] = []
        for start in range(0, len(pictures), TOGETHER):
            answers += _answers(model, form, pictures[start : start + TOGETHER], arguments.top)
            update(len(answers))
    if arguments.json:
        print(json.dumps([answer.as_json() for answer in answers], indent=2))
    else:
        _show(answers, model, arguments.file)
    broken = [answer for answer in answers if answer.error]
    for answer in broken:
        _say(f"{shown(answer.picture, NAME)}: {answer.error}")
    return 1 if broken else 0


def _say(line: str) -> None:
    print(shown(f"predict: {line}"), file=sys.stderr)


def form_of(model: PackedModel, fit: Any) -> PlainFormat:
    """The format that pictures are converted to. Raises `PredictError` if the model is for something else."""
    channels, height, width = model.image
    if channels not in (1, 3):
        raise PredictError(f"the model takes images of {channels} channels; pictures have 1 or 3")
    made = model.metadata.get(FIT)
    fit = fit or (made if made in FITS else "crop")
    return PlainFormat(height, width, cast(Literal[1, 3], channels), fit)


def _pictures(given: Sequence[str]) -> list[str]:
    """The pictures to classify, those of a folder sorted by name. Raises `DataError`."""
    found: list[str] = []
    for name in given:
        if not Path(name).is_dir():
            found.append(name)
            continue
        inside = pictures_in(Path(name), _say)
        if not inside:
            raise DataError(f"{shown(name, NAME)}: is a folder without pictures")
        found += map(str, inside)
    return found


def _answers(model: PackedModel, form: PlainFormat, pictures: Sequence[str], top: int) -> Iterator[Answer]:
    """The answers to the pictures, in order."""
    images, errors = [], {}
    for index, name in enumerate(pictures):
        try:
            images.append(read_picture(name, form))
        except Unreadable as error:
            errors[index] = str(error)
    logits, scale = _logits(model, np.stack(images)) if images else (np.empty((0, model.classes)), None)
    rows = iter(logits)
    for index, name in enumerate(pictures):
        if index in errors:
            yield Answer(name, error=errors[index])
        else:
            yield Answer(name, tuple(_candidates(model, next(rows), scale is not None, top)))


def _candidates(model: PackedModel, logits: np.ndarray, scaled: bool, top: int) -> Iterator[Candidate]:
    """The likeliest classes. `logits`: (classes,), in natural units if `scaled`."""
    shares = np.exp(logits - logits.max()) if scaled else logits
    for label in np.argsort(-logits, kind="stable")[:top].tolist():
        name = model.class_names[label] if model.class_names else f"class {label}"
        yield Candidate(name, label, float(shares[label] / shares.sum()) if scaled else None)


def _logits(model: PackedModel, images: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Logits (N, classes) for pixels (N, C, H, W) uint8, in natural units if the file gives their scale.

    Uses the numpy reference: torch would take longer to start than this takes for a thousand pictures.
    """
    # The logits of a cascade have a different scale for each way through it.
    scale = model.logit_scale if len(model.networks) == 1 else None
    if model.arithmetic == "half":
        logits = _logits_in_floats(model, images)
    else:
        logits = predict(model, images).astype(np.float64)
        if scale is not None and model.flip_margin:
            together = model.at_once(len(images))
            parts = [run(model, images[at : at + together]) for at in range(0, len(images), together)]
            logits[margins(np.concatenate(parts)) < model.flip_margin] /= 2
    return (logits, None) if scale is None else (logits * scale, scale)


def _logits_in_floats(model: PackedModel, images: np.ndarray) -> np.ndarray:
    import torch

    from micronet.data.images import normalise
    from micronet.packed.module import PackedModule

    return PackedModule(model).eval()(normalise(torch.from_numpy(images))).double().numpy()


def _show(answers: Sequence[Answer], model: PackedModel, file: str) -> None:
    """Prints the answers as a table, one row per named class."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from micronet.printing import print_lines, show

    if not any(answer.candidates for answer in answers):
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("picture")
    table.add_column("class")
    table.add_column("confidence", justify="right")
    for answer in answers:
        for place, candidate in enumerate(answer.candidates):
            sure = "-" if candidate.confidence is None else f"{100 * candidate.confidence:.2f} %"
            picture = "" if place else shown(answer.picture, NAME)
            table.add_row(Text(picture), Text(shown(candidate.name, 60)), sure)
    show(table, splits=True)
    if any(candidate.confidence is None for answer in answers for candidate in answer.candidates):
        said = "the classes stand in their order, without a confidence"
        print_lines(f"{shown(file, NAME)} does not say what its logits are worth: {said}")


if __name__ == "__main__":
    without_prompt()
    sys.exit(main())
