"""From a trained quantized network to the packed file, and back to a module that computes in its integers.

`pack` turns a `quantization.prepare`d model into steps (`micronet.packed`, `docs/format.md`): batch norms become
fixed-point multipliers and biases, ReLUs the lower end of a code range, a channel interleaving the order of the
channels before it. `load_packed` reads the file into a `PackedModule`, whose logits are the integers that the numpy
reference computes, on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn

from micronet.compress.operations import kind
from micronet.compress.quantization import finish
from micronet.files import write_atomically
from micronet.packed.arithmetic import work
from micronet.packed.bits import weight_storage
from micronet.packed.errors import PackError
from micronet.packed.file import PackedModel, decode, encode
from micronet.packed.module import PackedModule, flip_margin
from micronet.packed.steps import IMAGE, MOST_SUM, Step, interleave
from micronet.packed.widths import accumulation, bit_length, product_range, signed_width
from micronet.params import Quantize

MOST_SHIFT = 36


MOST_EXPONENT = 15  # shifts of one step differ by at most this


BIAS_FRACTION_BITS = 8  # a bias is stored to 1 / 256 of an output code


@dataclass(frozen=True)
class _Value:
    """A value of the packed model: the step that makes it, and what one code of each channel is worth."""

    index: int
    scale: np.ndarray  # (C,) float64


@dataclass(frozen=True)
class _Pending:
    """gain * source + offset + residual, not yet requantized. Vectors: an entry an output channel, float64.

    `maximum` is the side of the windows of which only the greatest value goes on. It is taken of the sums, so that one
    of a window is requantized; `of_codes` where a norm or an addition stands before it.
    """

    name: str
    source: _Value
    layer: nn.Conv2d | None
    gain: np.ndarray
    offset: np.ndarray
    norm: bool = False
    residual: _Value | None = None
    maximum: int = 1
    of_codes: bool = False


def _vector(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _norm(layer: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    """A batch norm in eval mode as gain and offset."""
    gain = _vector(layer.weight) / np.sqrt(_vector(layer.running_var) + layer.eps)
    return gain, _vector(layer.bias) - _vector(layer.running_mean) * gain


def _square(value: int | tuple[int, ...], name: str, what: str) -> int:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if pair[0] != pair[1]:
        raise PackError(f"{name}: a {what} of {pair[0]} x {pair[1]} cannot be packed, a square one would work")
    return pair[0]


def _uniform(value: _Value, name: str) -> float:
    if np.ptp(value.scale) > 0:
        raise PackError(f"{name}: reads maps of different scales at once; a batch norm and ReLU between would work")
    return float(value.scale[0])


def _argument(node: fx.Node, place: int, key: str, usual=None):
    return node.args[place] if len(node.args) > place else node.kwargs.get(key, usual)


class _Packer:
    """Walks a prepared graph and collects steps."""

    def __init__(self, prepared: fx.GraphModule, multiplier_bits: int, factored_sums: bool, half: bool):
        self.modules = dict(prepared.named_modules())
        self.multiplier_limit = 2 ** (multiplier_bits - 1) - 1
        self.factored_sums, self.half = factored_sums, half
        self.steps: list[Step] = []
        self.values: dict[fx.Node, _Value] = {}
        self.pending: dict[fx.Node, _Pending] = {}
        for node in prepared.graph.nodes:
            getattr(self, f"_{kind(node, self.modules)}")(node)

    def _emit(self, scale: np.ndarray, step: Step) -> _Value:
        self.steps.append(step)
        return _Value(len(self.steps) - 1, scale)

    def _value(self, node: fx.Node, user: fx.Node) -> _Value:
        if node not in self.values:
            raise PackError(f"{user.name}: reads {node.name}, which is not quantized; quantization.prepare does that")
        return self.values[node]

    def _step_of(self, value: _Value) -> Step:
        return self.steps[value.index]

    # Steps that have no arithmetic

    def _input(self, node: fx.Node) -> None:
        if self.half:
            zero = np.zeros(3, np.int32)
            step = Step("input", "image", (), IMAGE, zero, zero, code_bits=16, signed=True)
            self.values[node] = self._emit(np.ones(3), step)

    def _image_codes(self, node: fx.Node) -> None:
        codes = self.modules[node.target]
        low, high = np.full(3, codes.low, np.int32), np.full(3, codes.high, np.int32)
        step = Step("input", "image", (), IMAGE, low, high, code_bits=codes.bits, signed=True)
        self.values[node] = self._emit(np.full(3, codes.step), step)

    def _identity(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        for known in (self.values, self.pending):
            if source in known:
                known[node] = known[source]

    def _flatten(self, node: fx.Node) -> None:
        value = self._value(node.all_input_nodes[0], node)
        if self._step_of(value).shape[1:] != (1, 1):
            raise PackError(
                f"{node.name}: flattens a map that is not 1 x 1; a global average pool before it would work"
            )
        self.values[node] = value

    def _concat(self, node: fx.Node) -> None:
        if _argument(node, 1, "dim", 0) != 1:
            raise PackError(f"{node.name}: concatenates along another dimension than the channels, 1 would work")
        values = [self._value(source, node) for source in node.args[0]]
        steps = [self._step_of(value) for value in values]
        low, high = (np.concatenate([getattr(step, side) for step in steps]) for side in ("low", "high"))
        step = Step(
            "concat", node.name, tuple(value.index for value in values), (len(low), *steps[0].shape[1:]), low, high
        )
        self.values[node] = self._emit(np.concatenate([value.scale for value in values]), step)

    def _interleave(self, node: fx.Node) -> None:
        source, groups = node.all_input_nodes[0], self.modules[node.target].groups
        value = self._value(source, node)
        step = self._step_of(value)
        order = interleave(step.shape[0], groups)
        if len(source.users) > 1 or step.residual is not None or step.order > 1 or step.groups > 1:
            raise PackError(
                f"{node.target}: what it orders is used elsewhere too, or already ordered or grouped; "
                "it would work right behind a convolution or batch norm of its own"
            )
        keys = [key for key in ("multiplier", "shift", "bias") if getattr(step, key) is not None]
        vectors = {key: getattr(step, key)[order] for key in keys}
        if step.op == "conv":
            step = replace(step, weight=step.weight[order], **vectors)
        elif step.op == "affine":
            step = replace(step, order=groups, **vectors)
        else:
            raise PackError(
                f"{node.target}: stands behind a {step.op}; it would work right behind a convolution or norm"
            )
        self.steps[value.index] = step
        self.values[node] = _Value(value.index, value.scale[order])

    # Sums

    def _pool(self, node: fx.Node, kernel: int) -> None:
        value = self._value(node.all_input_nodes[0], node)
        source = self._step_of(value)
        channels, height, width = source.shape
        if height % kernel or width % kernel:
            raise PackError(
                f"{node.name}: a pool of {kernel} on {height} x {width} cannot be packed, a divisor would work"
            )
        low, high = ((side.astype(np.int64) * kernel**2).astype(np.int32) for side in (source.low, source.high))
        shape = (channels, height // kernel, width // kernel)
        step = Step("pool", node.name, (value.index,), shape, low, high, kernel=kernel)
        self.values[node] = self._emit(value.scale / kernel**2, step)

    def _average(self, node: fx.Node) -> None:
        if node.op == "call_module":
            layer = self.modules[node.target]
            kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
        else:
            kernel = _argument(node, 1, "kernel_size")
            stride, padding = _argument(node, 2, "stride"), _argument(node, 3, "padding", 0)
        kernel = _square(kernel, node.name, "pool")
        if (stride is not None and _square(stride, node.name, "stride") != kernel) or padding not in (0, (0, 0)):
            raise PackError(f"{node.name}: an overlapping or padded pool cannot be packed, stride = kernel would work")
        self._pool(node, kernel)

    def _mean(self, node: fx.Node) -> None:
        if node.target in (torch.mean, "mean"):
            dims = _argument(node, 1, "dim")
            fits = isinstance(dims, list | tuple) and sorted(dim % 4 for dim in dims) == [2, 3]
        else:
            size = self.modules[node.target].output_size if node.op == "call_module" else node.args[1]
            fits = size in (1, (1, 1), [1, 1])
        height, width = self._step_of(self._value(node.all_input_nodes[0], node)).shape[1:]
        if not fits or height != width:
            raise PackError(f"{node.name}: only a mean over a whole square map can be packed, dimensions (2, 3)")
        self._pool(node, height)

    # Maxima

    def _maximum(self, node: fx.Node) -> None:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        if node.op == "call_module":
            kernel, stride, *rest = (getattr(self.modules[node.target], name) for name in names)
        else:
            usual = (None, None, 0, 1, False)
            kernel, stride, *rest = (
                _argument(node, place, name, value)
                for place, (name, value) in enumerate(zip(names, usual, strict=True), start=1)
            )
        kernel, source = _square(kernel, node.name, "pool"), node.all_input_nodes[0]
        if (stride is not None and _square(stride, node.name, "stride") != kernel) or rest != [0, 1, False]:
            raise PackError(f"{node.name}: only a pool without overlap, padding, dilation and ceil_mode can be packed")
        if source in self.pending:
            before = self.pending[source]
            of_codes = self.half or before.norm or before.residual is not None
            if before.maximum > 1 and of_codes != before.of_codes:
                raise PackError(f"{node.name}: follows another maximum and a norm; a ReLU between would work")
            self.pending[node] = replace(before, maximum=before.maximum * kernel, of_codes=of_codes)
        else:
            self.values[node] = self._greatest(self._value(source, node), kernel, node.name)

    def _greatest(self, value: _Value, kernel: int, name: str) -> _Value:
        """The greatest code of each window."""
        source = self._step_of(value)
        channels, height, width = source.shape
        shape = (channels, height // kernel, width // kernel)
        step = Step("maximum", name, (value.index,), shape, source.low, source.high, kernel=kernel)
        return self._emit(value.scale, step)

    # Results on the way to a requantization

    def _conv(self, node: fx.Node) -> None:
        layer = self.modules[node.target]
        offset = np.zeros(layer.out_channels) if layer.bias is None else _vector(layer.bias)
        source = self._value(node.all_input_nodes[0], node)
        self.pending[node] = _Pending(node.target, source, layer, np.ones(layer.out_channels), offset)

    def _norm(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        gain, offset = _norm(self.modules[node.target])
        if source in self.pending and not self.pending[source].norm and self.pending[source].residual is None:
            before = self.pending[source]
            if before.of_codes and (gain < 0).any():
                raise PackError(
                    f"{node.target}: has negative scales and follows a maximum of floats; lsq, or a batch norm before "
                    "the pool would work"
                )
            self.pending[node] = replace(before, gain=gain, offset=before.offset * gain + offset, norm=True)
        else:
            self.pending[node] = _Pending(node.target, self._value(source, node), None, gain, offset, norm=True)

    def _add(self, node: fx.Node) -> None:
        main = next((item for item in node.all_input_nodes if item in self.pending), node.all_input_nodes[0])
        other = self._value(next(item for item in node.all_input_nodes if item is not main), node)
        if main in self.pending:
            if self.pending[main].of_codes:
                raise PackError(f"{node.name}: adds to a maximum of floats; lsq, or a ReLU between would work")
            self.pending[node] = replace(self.pending[main], residual=other)
        else:
            value = self._value(main, node)
            channels = len(value.scale)
            self.pending[node] = _Pending(node.name, value, None, np.ones(channels), np.zeros(channels), residual=other)

    def _relu(self, node: fx.Node) -> None:
        raise PackError(f"{node.name}: a ReLU without a quantizer; quantization.prepare puts one there")

    def _activation(self, node: fx.Node) -> None:
        source, quantizer = node.all_input_nodes[0], self.modules[node.target]
        if source in self.pending:
            pending = self.pending[source]
        else:
            value = self._value(source, node)
            channels = len(value.scale)
            pending = _Pending(source.name, value, None, np.ones(channels), np.zeros(channels))
        fields = {"name": pending.name, "relu": quantizer.relu, "norm": pending.norm}
        fields |= {"code_bits": quantizer.bits, "signed": quantizer.signed}
        if pending.residual is not None:
            fields["residual"] = pending.residual.index
        channels = len(pending.gain)
        if self.half:
            value = self._emit(np.ones(channels), self._float_step(pending, fields))
        else:
            scale = float(quantizer.step.detach())
            step = self._integer_step(pending, fields, scale, quantizer.low, quantizer.high)
            value = self._emit(np.full(channels, scale), step)
        if pending.maximum > self._step_of(value).window:
            value = self._greatest(value, pending.maximum, f"{pending.name}.max")
        self.values[node] = value

    def _geometry(self, pending: _Pending, fields: dict) -> tuple[int, int, int]:
        """Adds what a convolution needs to `fields`; gives the output's shape."""
        channels, height, width = self._step_of(pending.source).shape
        layer = pending.layer
        if layer is None:
            return channels, height, width
        kernel = _square(layer.kernel_size, pending.name, "kernel")
        stride, padding = _square(layer.stride, pending.name, "stride"), _square(layer.padding, pending.name, "padding")
        fields |= {"kernel": kernel, "stride": stride, "padding": padding, "groups": layer.groups}
        fields["window"] = window = 1 if pending.of_codes else pending.maximum
        sides = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
        return len(pending.gain), *(side // window for side in sides)

    def _float_step(self, pending: _Pending, fields: dict) -> Step:
        shape = self._geometry(pending, fields)
        zero = np.zeros(shape[0], np.int32)
        with np.errstate(over="ignore"):
            fields |= {"bias": pending.offset.astype(np.float16), "bias_bits": 16}
            if pending.layer is None:
                fields |= {"multiplier": pending.gain.astype(np.float16), "multiplier_bits": 16}
            else:
                weight = _vector(pending.layer.weight) * pending.gain[:, None, None, None]
                fields["weight"] = weight.astype(np.float16)
                fields["weight_bits"], fields["mask"] = weight_storage(fields["weight"])
                fields["accumulator_bits"] = 32
        for key in ("weight", "multiplier", "bias"):
            if key in fields and not np.isfinite(fields[key]).all():
                raise PackError(f"{pending.name}: a {key} is too large for 16 bits; lsq would work")
        op = "affine" if pending.layer is None else "conv"
        return Step(op, inputs=(pending.source.index,), shape=shape, low=zero, high=zero, **fields)

    def _dot_products(self, name: str, codes: np.ndarray, groups: int, source: Step, fields: dict) -> tuple:
        """Adds weight storage and accumulator widths to `fields`; gives the sums' range, (C,) each."""
        codes = codes.astype(np.int8)
        fields["weight"] = codes
        fields["weight_bits"], fields["mask"] = weight_storage(codes)
        sums = accumulation(codes, groups, source.low, source.high)
        if max(-int(sums.low.min()), int(sums.high.max())) >= MOST_SUM:
            raise PackError(f"{name}: its sums need more than 32 bits; fewer weight or activation bits would work")
        fields["accumulator_bits"] = int(sums.bits.max())
        if self.factored_sums:
            bits = fields["weight_bits"]
            ways = [work(codes, groups, source.low, source.high, bits, factored) for factored in (False, True)]
            one_by_one, factored = (sum(width * n for each in way for width, n in each.items()) for way in ways)
            fields["factored"] = factored < one_by_one
        return sums.low, sums.high

    def _integer_step(self, pending: _Pending, fields: dict, scale: float, low: int, high: int) -> Step:
        source, name = self._step_of(pending.source), pending.name
        shape = self._geometry(pending, fields)
        if pending.layer is None:
            sum_low, sum_high = source.low.astype(np.int64), source.high.astype(np.int64)
            gain = pending.gain * pending.source.scale / scale
        else:
            codes, weight_scale = pending.layer.quantizer.codes(pending.layer.weight)
            sum_low, sum_high = self._dot_products(name, codes.cpu().numpy(), pending.layer.groups, source, fields)
            gain = pending.gain * _vector(weight_scale) * _uniform(pending.source, name) / scale
        gain = np.where(sum_high > sum_low, gain, 0.0)
        offset, limit = pending.offset / scale, self.multiplier_limit
        if not (np.isfinite(gain).all() and np.isfinite(offset).all()):
            raise PackError(
                f"{name}: a weight, norm or step is not finite; a training run that diverged cannot be packed"
            )
        # A norm over a channel that was constant in training has a huge gain. Beyond the limit a sum's unit spans more
        # than most of the code range anyway: the line gets flatter around the middle of the range.
        steep = np.abs(gain) > limit
        flat = np.where(steep, np.sign(gain) * limit, gain)
        middle = (low + high) / 2
        offset = np.where(steep, middle - (middle - offset) * np.abs(flat) / np.where(steep, np.abs(gain), 1), offset)
        gain = flat
        # Each channel has a shift of its own, so that all multipliers use their width.
        with np.errstate(divide="ignore"):
            shift = np.floor(np.log2(limit / np.abs(gain)))
        shift += np.abs(np.rint(gain * 2.0 ** np.minimum(shift + 1, MOST_SHIFT))) <= limit
        shift = np.clip(shift, 0, MOST_SHIFT).astype(np.int64)
        least = int(shift[gain != 0].min()) if gain.any() else BIAS_FRACTION_BITS
        shift = np.where(gain != 0, np.minimum(shift, least + MOST_EXPONENT), least)
        multiplier = np.rint(gain * 2.0**shift).astype(np.int64)
        reach_low, reach_high = product_range(sum_low, sum_high, multiplier)
        fields |= {"multiplier": multiplier, "shift": shift, "bias_fraction": BIAS_FRACTION_BITS}
        fields["exponent_bits"] = int(bit_length(shift.max() - shift.min()))
        if pending.residual is not None:
            ratio = _uniform(pending.residual, name) / scale
            fraction = next((bits for bits in range(int(shift.min()), -1, -1) if round(ratio * 2.0**bits) <= limit), 0)
            factor = min(round(ratio * 2.0**fraction), limit)
            fields |= {"residual_multiplier": factor, "residual_fraction": fraction}
            fields["residual_bits"] = int(signed_width(0, factor))
            other = self._step_of(pending.residual)
            added = product_range(other.low, other.high, factor << (shift - fraction))
            reach_low, reach_high = reach_low + added[0], reach_high + added[1]
        # The half that makes the floor a rounding is in the bias. A bias beyond these bounds gives the lowest or
        # highest code whatever the sum, and so does the bound, in fewer bits.
        unit = 2.0 ** np.maximum(shift - BIAS_FRACTION_BITS, 0)
        bias = np.rint((offset + 0.5) * 2.0**shift / unit)
        lowest = np.floor((low * 2.0**shift - reach_high) / unit)
        highest = np.ceil((high * 2.0**shift - reach_low) / unit)
        fields["bias"] = np.clip(bias, lowest, highest).astype(np.int64)
        for key in ("multiplier", "bias"):
            fields[f"{key}_bits"] = int(signed_width(fields[key].min(), fields[key].max()))
        code_range = np.full(shape[0], low, np.int32), np.full(shape[0], high, np.int32)
        op = "affine" if pending.layer is None else "conv"
        return Step(op, inputs=(pending.source.index,), shape=shape, low=code_range[0], high=code_range[1], **fields)

    def _linear(self, node: fx.Node) -> None:
        layer, name = self.modules[node.target], node.target
        value = self._value(node.all_input_nodes[0], node)
        source = self._step_of(value)
        users = [kind(user, self.modules) for user in node.users]
        if source.shape[1:] != (1, 1) or users not in (["output"], ["scale"]):
            raise PackError(f"{name}: a linear layer packs as the last one, behind a global average pool")
        bias = np.zeros(layer.out_features) if layer.bias is None else _vector(layer.bias)
        fields: dict = {}
        zero = np.zeros(layer.out_features, np.int32)
        if self.half:
            fields |= {"weight": _vector(layer.weight).astype(np.float16), "accumulator_bits": 32}
            fields["weight_bits"], fields["mask"] = weight_storage(fields["weight"])
            fields |= {"bias": bias.astype(np.float16), "bias_bits": 16}
        else:
            codes, weight_scale = layer.quantizer.codes(layer.weight)
            if float(weight_scale.max()) != float(weight_scale.min()):
                raise PackError(f"{name}: logits of different scales cannot be compared; a scale a tensor would work")
            self._dot_products(name, codes.cpu().numpy(), 1, source, fields)
            integers = np.rint(bias / (float(weight_scale[0]) * _uniform(value, name))).astype(np.int64)
            fields |= {"bias": integers, "bias_bits": int(signed_width(integers.min(), integers.max()))}
        shape = (layer.out_features, 1, 1)
        self._emit(zero, Step("linear", name, (value.index,), shape, zero, zero, **fields))

    def _scale(self, node: fx.Node) -> None:
        """A positive factor of all logits leaves their order, so it goes."""

    def _output(self, node: fx.Node) -> None:
        if not self.steps or self.steps[-1].op != "linear":
            raise PackError("the model does not end in a linear layer; one behind a global average pool would work")


def pack(
    prepared: fx.GraphModule,
    path: Path | str,
    *,
    quantize: Quantize,
    images: Tensor | None = None,
    metadata: Mapping[str, str] | None = None,
) -> PackedModel:
    """Writes a model that `quantization.prepare` made (its eval mode) as a packed file; gives it read back.

    Args:
        quantize: `multiplier_bits`, `factored_sums`, `flip_share` and `method` are used.
        images: (N, 3, 32, 32) uint8, of validation: they set the flip margin where there is a `flip_share`.
        metadata: texts that travel with the model under its digest, such as its accuracy and its params.

    Raises:
        PackError: an operation that the format does not know, or a value it cannot hold; nothing is written.
    """
    if not isinstance(prepared, fx.GraphModule) or "quantize" not in prepared.meta:
        raise PackError(f"a {type(prepared).__name__} is not quantized; quantization.prepare makes what can be packed")
    half = quantize.method == "half"
    packer = _Packer(finish(prepared), quantize.multiplier_bits, quantize.factored_sums, half)
    spec, arithmetic, texts = prepared.meta.get("spec"), "half" if half else "integer", dict(metadata or {})
    data = encode(packer.steps, spec, arithmetic, texts)
    if quantize.flip_share:
        if images is None:
            raise PackError("flip_share: the images that set the margin are missing")
        margin = flip_margin(PackedModule(decode(data)), images, quantize.flip_share)
        last = replace(packer.steps[-1], margin=margin, margin_bits=int(bit_length(margin)))
        data = encode([*packer.steps[:-1], last], spec, arithmetic, texts)
    model = decode(data)
    write_atomically(path, data)
    return model
