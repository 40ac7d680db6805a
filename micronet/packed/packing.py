"""From a trained quantized network to the packed file, which is compared with the network before it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from micronet.compress.quantization import finish
from micronet.data.progress import Watch, unwatched
from micronet.files import write_atomically
from micronet.packed.agreement import compare, made_up_images
from micronet.packed.errors import PackedFileError, PackError
from micronet.packed.file import decode, encode, planned
from micronet.packed.limits import MOST_FILE_BYTES
from micronet.packed.model import PackedModel
from micronet.packed.module import PackedModule, flip_margin
from micronet.packed.packer import Packer
from micronet.packed.steps.linear import Choice, chosen
from micronet.packed.widths import bit_length
from micronet.params import Quantize


def _packed(prepared: fx.GraphModule, quantize: Quantize) -> tuple[Packer, fx.GraphModule]:
    """The packer that has walked a prepared model, and the graph that it walked. Raises `PackError`."""
    if not isinstance(prepared, fx.GraphModule) or "quantize" not in prepared.meta:
        raise PackError(f"a {type(prepared).__name__} is not quantized; compress.prepare makes what can be packed")
    finished = finish(prepared)
    half = quantize.method == "half"
    return Packer(finished, quantize.multiplier_bits, quantize.factored_sums, half), finished


def rehearse(prepared: fx.GraphModule, quantize: Quantize) -> None:
    """Packs a prepared model without writing it, so that what `pack` would refuse after hours of training fails now.

    Raises:
        PackError: see `pack`.
    """
    packer, _ = _packed(prepared, quantize)
    with _of_the_model():
        planned([step.row(0) for step in packer.steps], packer.half, MOST_FILE_BYTES)


@contextmanager
def _of_the_model() -> Iterator[None]:
    """Reports what a file cannot hold as an error of the model, since there is no file yet."""
    try:
        yield
    except PackedFileError as error:
        raise PackError(str(error)) from None


def pack(
    prepared: fx.GraphModule,
    path: Path | str | None = None,
    *,
    quantize: Quantize,
    images: Tensor | None = None,
    seen: Tensor | None = None,
    metadata: Mapping[str, str] | None = None,
    class_names: Sequence[str] = (),
    watch: Watch = unwatched,
) -> PackedModel:
    """Packs a model that `compress.quantization.prepare` made (its eval mode); returns it as read back.

    The result is compared with the model, step by step (`packed.agreement`).

    Args:
        path: where the file is written; None: nowhere.
        quantize: `multiplier_bits`, `factored_sums`, `flip_share` and `method` are used.
        images: (N, C, H, W) uint8, validation images: they set the flip margin if there is a `flip_share`.
        seen: (N, C, H, W) uint8, calibration images: the comparison uses the first ones; noise if left out.
        metadata: texts stored with the model under its digest, such as its accuracy and its params.
        class_names: in the order of the logits, one each; none if they are unknown.
        watch: shows how many steps have been compared.

    Raises:
        PackError: an operation that the format does not know, a value it cannot hold, or a step that does not compute
            what the model does; nothing is written.
    """
    packer, finished = _packed(prepared, quantize)
    spec, texts = prepared.meta.get("spec"), dict(metadata or {})
    arithmetic = "half" if quantize.method == "half" else "integer"
    classes = packer.steps[-1].shape[0]
    if len(class_names) not in (0, classes):
        raise PackError(f"the network tells {classes} classes apart, and {len(class_names)} names were given")
    described: dict[str, Any] = {"class_names": class_names, "logit_scale": packer.logit_scale}
    with _of_the_model():
        data = encode(packer.steps, spec, arithmetic, texts, **described)
        model = decode(data)
    compare(finished, packer.made, model, made_up_images(packer.image) if seen is None else seen, watch)
    if quantize.flip_share:
        if images is None:
            raise PackError("flip_share: the images that set the margin are missing")
        margin = flip_margin(PackedModule(model), images, quantize.flip_share)
        *before, last = packer.steps
        choice = Choice(margin=margin, bits=int(bit_length(margin)))
        data = encode([*before, chosen(last, choice)], spec, arithmetic, texts, **described)
        model = decode(data)
    if path is not None:
        write_atomically(path, data)
    return model
