"""Cascades: several packed models in one file, each for the images that the ones before it are unsure of.

Most images are easy, and a small network classifies them correctly; those it is unsure of go on to a larger one, and
the logits are summed. All rule books charge the mean over the images. Viola & Jones 2001 for detectors; BranchyNet,
Teerapittayanon et al. 2016, arXiv:1709.01686, for early exits from one network; Wang et al. 2022, arXiv:2012.01988,
for a sequence of whole networks switched by confidence, which they also sum as an ensemble. `docs/format.md` says how
a file stores it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from micronet.data.images import normalise
from micronet.files import write_atomically
from micronet.packed.errors import PackError
from micronet.packed.file import decode, encode
from micronet.packed.limits import MOST_NETWORKS
from micronet.packed.margins import margin_of, margins, mean_passes
from micronet.packed.model import CASCADE, FIT, PackedModel, joined
from micronet.packed.module import PackedModule
from micronet.packed.steps import Affine, Conv, Product, Step
from micronet.packed.steps.linear import Choice, chosen
from micronet.packed.widths import bit_length

MOST_LOGIT_SHIFT = 16  # with scales further apart, one network would have no influence
LESS_HEARD = 3  # a network's logits may get up to 2**3 times less weight than the next one's
BATCH = 500


@dataclass(frozen=True)
class Tuning:
    """What certain shares of the images cost and achieve, on the images that the cascade was tuned with."""

    shares: tuple[float, ...]  # of the images that take the second, third ... pass
    passes: tuple[float, ...]  # through each network, mean over the images
    accuracy_percent: float
    margins: tuple[int, ...]  # one per network
    logit_shifts: tuple[int, ...]  # one per network except the last


def join(models: Sequence[PackedModel]) -> bytes:
    """One file of several networks. Its margins are placeholders: `Cascade.tune` finds useful ones.

    Raises:
        PackError: fewer than two models, one that is a cascade or in 16-bit floats, different inputs or classes.
    """
    if len(models) < 2:
        raise PackError("a cascade needs two packed models or more")
    if len(models) > MOST_NETWORKS:
        raise PackError(f"a cascade takes at most {MOST_NETWORKS} packed models (got {len(models)})")
    first = models[0]
    for model in models:
        if len(model.networks) > 1:
            raise PackError("a cascade cannot be part of another one; join the files that it was made of")
        if model.arithmetic != "integer":
            raise PackError("a model in 16-bit floats has no integer logits to join")
        if (model.input_bits, model.classes) != (first.input_bits, first.classes):
            raise PackError("models that keep other bits of a pixel, or have other classes, cannot be joined")
        if (model.image, model.class_names) != (first.image, first.class_names):
            raise PackError("models of images of other shapes, or whose classes have other names, cannot be joined")
        if model.metadata.get(FIT) != first.metadata.get(FIT):
            raise PackError("models of pictures that were fitted in other ways (data.image_fit) cannot be joined")
    steps: list[Step] = [first.steps[0]]
    for number, model in enumerate(models, 1):
        # The input is shared; the other steps move behind those of the networks before.
        offset = len(steps) - 1
        moved = [_moved(step, offset, f"{number}.{step.name}") for step in model.steps[1:]]
        last = number == len(models)
        steps += [*moved[:-1], chosen(moved[-1], None if last else Choice(margin=1, bits=1, logit_shift=0))]
    specs = [model.spec for model in models]
    spec = None if None in specs else {"name": CASCADE, "networks": specs}
    return encode(steps, spec, "integer", {}, class_names=first.class_names)


def _moved(step: Step, offset: int, name: str) -> Step:
    """The step moved back by that many steps; the input stays where it is."""

    def place(value: int) -> int:
        return value + offset if value else 0

    step = replace(step, name=name, inputs=tuple(place(value) for value in step.inputs))
    if not isinstance(step, Conv | Affine | Product) or step.scaling.residual is None:
        return step
    residual = replace(step.scaling.residual, value=place(step.scaling.residual.value))
    return replace(step, scaling=replace(step.scaling, residual=residual))


class Cascade:
    """Joined models and the logits of every pass on some images, from which margins for any shares follow at once.

    Args:
        models: from the one that sees all images to the last.
        images: (N, C, H, W) uint8, not from the test set.
        labels: (N,) int64.

    Raises:
        PackError: see `join`.
    """

    def __init__(self, models: Sequence[PackedModel], images: Tensor, labels: Tensor):
        self.model, self.labels = decode(join(models)), labels
        self.digests = [model.digest for model in models]
        self.fit = {key: text for key, text in models[0].metadata.items() if key == FIT}
        module = PackedModule(self.model).eval()
        last = len(models) - 1
        # Every second pass sees the mirror image; the last network has two passes.
        self.logits = [
            torch.cat(
                [
                    module.one_pass(normalise(part.flip(3) if number % 2 else part), min(number, last))
                    for part in images.split(BATCH)
                ]
            )
            for number in range(len(models) + 1)
        ]

    def tune(self, shares: Sequence[float]) -> Tuning:
        """The margins with which these shares of the images take the second, third ... pass, and the outcome.

        The logits so far are added to a network's with the weight, among powers of two up to equal scales, that gives
        the most correct answers on the images that reach it: a small network should have less weight than a large one.

        Args:
            shares: one per network: the share of images that go on behind it, not above the share before. 0 for the
                last one: no image is seen mirrored.

        Raises:
            PackError: shares that increase, are not in [0, 1), or are not one per network.
        """
        networks = len(self.logits) - 1
        falling = sorted(shares, reverse=True) == list(shares) and all(0 <= share < 1 for share in shares)
        if len(shares) != networks or not falling:
            raise PackError(f"shares: must be {networks} falling numbers from 0 to 1 (got {list(shares)})")
        total, going = self.logits[0].clone(), torch.arange(len(self.labels))
        found: list[int] = []
        shifts: list[int] = []
        taken = torch.ones_like(going)
        for share, logits in zip(shares, self.logits[1:], strict=True):
            count = round(share * len(self.labels))
            if count == 0 and len(found) + 1 < networks:
                raise PackError("shares: a network that no image reaches; leave it out")
            found.append(margin_of(margins(total[going]), count) if count else 0)
            going = going[margins(total[going]) < found[-1]]
            again = len(shifts) + 1 == networks
            shifts.append(min(shifts[-1], 0) if again else self._shift(total[going], logits[going], going))
            total[going] = joined(total[going], logits[going], shifts[-1])
            taken[going] += 1
        reached = tuple(int((taken > number).sum()) / len(taken) for number in range(1, networks + 1))
        accuracy = 100.0 * float((total.argmax(1) == self.labels).double().mean())
        return Tuning(reached, mean_passes(taken, networks), accuracy, tuple(found), tuple(shifts[:-1]))

    def _shift(self, total: Tensor, logits: Tensor, going: Tensor) -> int:
        ratio = float(_spread(logits) / _spread(total).clamp(min=1e-9))
        equal = round(math.log2(max(ratio, 1e-9)))
        if abs(equal) > MOST_LOGIT_SHIFT:
            raise PackError(f"logits of scales 2**{equal} apart: one of the networks says nothing")

        def right(shift: int) -> int:
            return int((joined(total, logits, shift).argmax(1) == self.labels[going]).sum())

        return max((equal - less for less in range(LESS_HEARD + 1)), key=right)

    def claims(self, tuning: Tuning) -> dict[str, str]:
        """What the file of this tuning says about itself: its accuracy on these images, the digests of its networks
        and, if they say it, how images are to be resized."""
        return {
            **self.fit,
            "validation_accuracy_percent": f"{tuning.accuracy_percent:.4f}",
            **{f"network_{number}": digest for number, digest in enumerate(self.digests, 1)},
        }

    def write(self, path: Path | str, tuning: Tuning, metadata: Mapping[str, str] | None = None) -> PackedModel:
        """Writes the cascade with these margins; returns it as read back."""
        steps = list(self.model.steps)
        ends = [network[-1] for network in self.model.networks]
        for end, margin, shift in zip(ends, tuning.margins, (*tuning.logit_shifts, None), strict=True):
            choice = Choice(margin=margin, bits=int(bit_length(margin)), logit_shift=shift)
            steps[end] = chosen(steps[end], choice if margin else None)
        texts, names = dict(metadata or {}), self.model.class_names
        data = encode(steps, self.model.spec, "integer", texts, class_names=names)
        model = decode(data)
        write_atomically(path, data)
        return model


def _spread(logits: Tensor) -> Tensor:
    """The scale of logits (N, C): their root mean square around each image's mean."""
    return (logits - logits.mean(1, keepdim=True)).square().mean().sqrt()
