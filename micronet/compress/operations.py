"""The operations that this project knows: how a network may spell each, what its arguments mean, what can be packed.

All code that reads a traced network uses this one table: `compress.quantization` and `packed.packing`, which refuse
what the packed format cannot hold, and `scoring.module_counts`, which prices. A spelling is a function, a tensor method
or a module, with a reader of the same Python signature: every argument is honoured or refused by name.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from micronet.compress import spellings
from micronet.compress.errors import QuantizationError, UnknownOperation
from micronet.compress.functions import Ends
from micronet.compress.pointwise import Pointwise, SlopesBelow
from micronet.compress.quantizers import ACTIVATIONS, InputCodes, QuantizedConv2d, QuantizedLinear
from micronet.compress.spellings import Read, Refusal
from models.layers import Interleave


@dataclass(frozen=True)
class Operation:
    """A kind of operation, as quantizer, packer and scorer know it."""

    kind: str
    spellings: tuple[Spelling, ...] = ()
    opcode: str | None = None  # of nodes that are not calls
    # Why a call cannot be packed and what would work, or None. The module is None for a function call.
    refusal: Callable[[Read, fx.Node, Any], str | None] = lambda _read, _node, _module: None
    # Kinds that may be merged with its unquantized result into one step of the packed model.
    followers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spelling:
    """Ways to write an operation that take the same arguments, those of `reader`."""

    reader: Callable[..., Read]
    functions: tuple[Callable, ...] = ()
    methods: tuple[str, ...] = ()  # of tensors
    modules: tuple[type[nn.Module], ...] = ()
    attributes: tuple[str, ...] = ()  # of the modules; these hold what functions take as arguments
    writes: tuple[Callable | str, ...] = ()  # the functions and methods that write into their first input


@dataclass(frozen=True)
class Call:
    """A node of a traced network, as read."""

    operation: Operation
    place: str  # the module's name in the network, or the node's name
    module: Any = None
    read: Read = field(default_factory=lambda: Read(()))

    @property
    def kind(self) -> str:
        return self.operation.kind

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        return self.read.inputs

    @property
    def settings(self) -> Any:
        return self.read.settings


# What cannot be packed, whatever its input


def _of_a_convolution(_read: Read, _node: fx.Node, module: Any) -> str | None:
    if module.padding_mode != "zeros":
        return f"padding_mode={module.padding_mode!r} cannot be packed, 'zeros' would work"
    extents = zip(module.kernel_size, module.dilation, strict=True)
    if module.padding == "same" and any(gap * (size - 1) % 2 for size, gap in extents):
        return "padding='same' of an even kernel pads one side more, an odd kernel or a number would work"
    return None


def _of_a_norm(_read: Read, _node: fx.Node, module: Any) -> str | None:
    if module.running_mean is None:
        return "a batch norm cannot be packed without statistics, track_running_stats=True would work"
    return None


def _of_a_pool(read: Read, _node: fx.Node, _module: Any) -> str | None:
    return None if read.settings.dilation == (1, 1) else "a dilated pool cannot be packed, dilation 1 would work"


def _of_ends(read: Read, _node: fx.Node, _module: Any) -> str | None:
    ends: Ends = read.settings
    if not ends.bounded:
        return f"a range from {ends.low} to {ends.high} cannot be packed, one that holds 0 and more would work"
    return None


# Activation functions


def _plain(name: str, *functions: Callable, methods: tuple[str, ...] = (), module: type[nn.Module]) -> Spelling:
    """The spelling of a function without arguments; names that end in `_` write into their input."""
    in_place: list[Callable | str] = [call for call in functions if call.__name__.endswith("_")]
    in_place += [name for name in methods if name.endswith("_")]
    attributes = ("inplace",) if "inplace" in inspect.signature(module).parameters else ()
    return Spelling(spellings.plain(name), functions, methods, (module,), attributes, tuple(in_place))


DROPS = {F.dropout: nn.Dropout, F.dropout2d: nn.Dropout2d}
"""Functions that drop values while a network trains, and the layers that do the same."""
_ENDS = ("relu", "clamp")  # they end a step of the packed model, as its code range
_FUNCTIONS = (
    _plain("sigmoid", torch.sigmoid, F.sigmoid, torch.sigmoid_, methods=("sigmoid", "sigmoid_"), module=nn.Sigmoid),
    _plain("tanh", torch.tanh, F.tanh, torch.tanh_, methods=("tanh", "tanh_"), module=nn.Tanh),
    _plain("silu", F.silu, module=nn.SiLU),
    _plain("mish", F.mish, module=nn.Mish),
    _plain("hard_sigmoid", F.hardsigmoid, module=nn.Hardsigmoid),
    _plain("hard_swish", F.hardswish, module=nn.Hardswish),
    _plain("selu", F.selu, torch.selu, torch.selu_, module=nn.SELU),
    Spelling(spellings.plain("erf"), (torch.erf, torch.special.erf), ("erf", "erf_"), writes=("erf_",)),
    Spelling(spellings.plain("abs"), (torch.abs, operator.abs), ("abs", "abs_"), writes=("abs_",)),
    Spelling(spellings.plain("sigmoid"), (torch.special.expit,)),
    Spelling(spellings.gelu, (F.gelu,), modules=(nn.GELU,), attributes=("approximate",)),
    Spelling(spellings.softplus, (F.softplus,), modules=(nn.Softplus,), attributes=("beta", "threshold")),
    Spelling(
        spellings.leaky_relu,
        (F.leaky_relu, F.leaky_relu_),
        modules=(nn.LeakyReLU,),
        attributes=("negative_slope", "inplace"),
        writes=(F.leaky_relu_,),
    ),
    Spelling(spellings.elu, (F.elu, F.elu_), modules=(nn.ELU,), attributes=("alpha", "inplace"), writes=(F.elu_,)),
    Spelling(
        spellings.celu,
        (F.celu, torch.celu, torch.celu_),
        modules=(nn.CELU,),
        attributes=("alpha", "inplace"),
        writes=(torch.celu_,),
    ),
    Spelling(
        spellings.power, (operator.pow, operator.ipow, torch.pow), ("pow", "pow_"), writes=(operator.ipow, "pow_")
    ),
    Spelling(lambda input: spellings.power(input, 2), (torch.square,), ("square", "square_"), writes=("square_",)),
)
_CLAMPS = (
    Spelling(spellings.relu6, (F.relu6,)),
    Spelling(
        spellings.hardtanh,
        (F.hardtanh, F.hardtanh_),
        modules=(nn.Hardtanh, nn.ReLU6),
        attributes=("min_val", "max_val", "inplace"),
        writes=(F.hardtanh_,),
    ),
    Spelling(
        spellings.clamp,
        (torch.clamp, torch.clip, torch.clamp_, torch.clip_),
        ("clamp", "clip", "clamp_", "clip_"),
        writes=(torch.clamp_, torch.clip_, "clamp_", "clip_"),
    ),
    Spelling(
        spellings.clamp_min,
        (torch.clamp_min, torch.clamp_min_),
        ("clamp_min", "clamp_min_"),
        writes=(torch.clamp_min_, "clamp_min_"),
    ),
    Spelling(
        spellings.clamp_max,
        (torch.clamp_max, torch.clamp_max_),
        ("clamp_max", "clamp_max_"),
        writes=(torch.clamp_max_, "clamp_max_"),
    ),
)
# Inserted by a rewriter or by `fuse`: the module knows what it computes.
_FUSED = Spelling(spellings.reads, modules=(Pointwise,))

OPERATIONS = (
    Operation("input", opcode="placeholder"),
    Operation("output", opcode="output"),
    Operation(
        "conv",
        (
            Spelling(
                spellings.convolution,
                modules=(nn.Conv2d, QuantizedConv2d),
                attributes=("kernel_size", "stride", "padding", "dilation", "padding_mode"),
            ),
        ),
        refusal=_of_a_convolution,
        followers=("norm", "maximum", "add", *_ENDS, "scale", "shift", "identity"),
    ),
    # A linear layer that does not give the logits is a convolution whose kernel covers the map.
    Operation(
        "linear",
        (Spelling(spellings.reads, modules=(nn.Linear, QuantizedLinear)),),
        followers=("norm", "add", *_ENDS, "scale", "shift", "identity"),
    ),
    Operation(
        "norm",
        (Spelling(spellings.reads, modules=(nn.BatchNorm2d, nn.BatchNorm1d)),),
        refusal=_of_a_norm,
        followers=("maximum", "add", *_ENDS, "scale", "shift", "identity"),
    ),
    Operation(
        "add",
        (
            Spelling(
                spellings.add, (operator.add, operator.iadd, torch.add), ("add", "add_"), writes=(operator.iadd, "add_")
            ),
            Spelling(
                spellings.subtract,
                (operator.sub, operator.isub, torch.sub, torch.subtract),
                ("sub", "sub_", "subtract"),
                writes=(operator.isub, "sub_"),
            ),
        ),
        followers=("maximum", *_ENDS, "identity"),
    ),
    Operation(
        "relu",
        (
            Spelling(spellings.relu, (F.relu,), modules=(nn.ReLU,), attributes=("inplace",)),
            Spelling(
                spellings.reads,
                (torch.relu, torch.relu_, F.relu_),
                ("relu", "relu_"),
                writes=(torch.relu_, F.relu_, "relu_"),
            ),
        ),
    ),
    Operation("concat", (Spelling(spellings.concat, (torch.cat, torch.concat, torch.concatenate)),)),
    Operation(
        "average",
        (
            Spelling(
                spellings.average,
                (F.avg_pool2d,),
                modules=(nn.AvgPool2d,),
                attributes=("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
            ),
        ),
        refusal=_of_a_pool,
    ),
    # A maximum may be followed only by what might have followed its input.
    Operation(
        "maximum",
        (
            Spelling(
                spellings.maximum,
                (F.max_pool2d, torch.max_pool2d),
                modules=(nn.MaxPool2d,),
                attributes=("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
            ),
        ),
        refusal=_of_a_pool,
        followers=("norm", *_ENDS, "identity"),
    ),
    # A maximum whose windows cover the map: `compress.graph` turns it into `maximum`.
    Operation(
        "global_maximum",
        (
            Spelling(spellings.greatest, (torch.amax,), ("amax",)),
            Spelling(
                spellings.global_maximum,
                (F.adaptive_max_pool2d,),
                modules=(nn.AdaptiveMaxPool2d,),
                attributes=("output_size", "return_indices"),
            ),
        ),
    ),
    Operation(
        "mean",
        (
            Spelling(spellings.mean, (torch.mean,), ("mean",)),
            Spelling(
                spellings.global_average,
                (F.adaptive_avg_pool2d,),
                modules=(nn.AdaptiveAvgPool2d,),
                attributes=("output_size",),
            ),
        ),
    ),
    Operation(
        "flatten",
        (
            Spelling(
                spellings.flatten,
                (torch.flatten,),
                ("flatten",),
                modules=(nn.Flatten,),
                attributes=("start_dim", "end_dim"),
            ),
            Spelling(
                spellings.reshape,
                (torch.reshape, torch.squeeze, torch.unsqueeze),
                ("view", "reshape", "squeeze", "unsqueeze"),
            ),
            Spelling(spellings.indexed, (operator.getitem,)),
        ),
    ),
    Operation("interleave", (Spelling(spellings.reads, modules=(Interleave,)),)),
    Operation(
        "identity",
        (
            Spelling(spellings.reads, modules=(nn.Identity,)),
            Spelling(spellings.dropout_module, modules=(nn.Dropout, nn.Dropout2d), attributes=("inplace",)),
            Spelling(spellings.dropout, tuple(DROPS)),
            Spelling(spellings.copy, (torch.clone,), ("clone",)),
            Spelling(spellings.contiguous, methods=("contiguous",)),
        ),
    ),
    Operation(
        "scale",
        (
            Spelling(
                spellings.product,
                (operator.mul, operator.imul, torch.mul, torch.multiply),
                ("mul", "mul_", "multiply", "multiply_"),
                writes=(operator.imul, "mul_", "multiply_"),
            ),
            Spelling(spellings.negative, (operator.neg, torch.neg), ("neg", "neg_"), writes=("neg_",)),
            Spelling(
                spellings.quotient,
                (operator.truediv, operator.itruediv, torch.div, torch.divide),
                ("div", "div_", "divide"),
                writes=(operator.itruediv, "div_"),
            ),
        ),
        followers=("add", *_ENDS, "scale", "shift", "identity"),
    ),
    # x + 3: what `add` and `subtract` give for a single value.
    Operation("shift", followers=("add", *_ENDS, "scale", "shift", "identity")),
    # Two values: what `product` gives for them.
    Operation("product", followers=("norm", "maximum", "add", *_ENDS, "scale", "shift", "identity")),
    Operation("function", (*_FUNCTIONS, _FUSED), followers=("scale", "shift", *_ENDS, "identity")),
    Operation("clamp", _CLAMPS, refusal=_of_ends),
    Operation("prelu", (Spelling(spellings.reads, modules=(nn.PReLU,)),)),
    # Inserted by `compress.quantization.prepare`.
    Operation("slopes", (Spelling(spellings.reads, modules=(SlopesBelow,)),), followers=("add",)),
    Operation("image_codes", (Spelling(spellings.reads, modules=(InputCodes,)),)),
    Operation("activation", (Spelling(spellings.reads, modules=ACTIVATIONS),)),
)

WOULD_WORK = (
    "conv2d, batch_norm, +, *, relu, hardswish and other activations, cat, avg_pool2d, max_pool2d, mean or amax over "
    "(2, 3), Interleave, flatten, linear would work"
)

_SPELLED = {
    (call, target): (known, spelling)
    for known in OPERATIONS
    for spelling in known.spellings
    for call, targets in (
        ("call_function", spelling.functions),
        ("call_method", spelling.methods),
        ("call_module", spelling.modules),
    )
    for target in targets
}
_KINDS = {known.kind: known for known in OPERATIONS}
_NO_CALLS = {known.opcode: known for known in OPERATIONS if known.opcode}
_signature = functools.cache(inspect.signature)  # needed several times at every node of a network
# numpy's names, which torch accepts too; x is what a user's own module may call its input.
_OTHER_NAMES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "x1": "input", "x2": "other", "self": "input"}


def call(node: fx.Node, modules: Mapping[str, nn.Module]) -> Call:
    """Reads a traced node; `modules` as `named_modules` gives them.

    Raises:
        UnknownOperation: the operation is not in the table.
        QuantizationError: an argument is not in the table.
    """
    if node.op in _NO_CALLS:
        return Call(_NO_CALLS[node.op], node.name)
    module = modules[str(node.target)] if node.op == "call_module" else None
    place = node.name if module is None else str(node.target)
    what = node.target if module is None else type(module)
    name = what if isinstance(what, str) else getattr(what, "__name__", str(what))
    if (node.op, what) not in _SPELLED:
        raise UnknownOperation(place, name, WOULD_WORK)
    known, spelling = _SPELLED[node.op, what]
    arguments = {_OTHER_NAMES.get(key, key): value for key, value in node.kwargs.items()}
    if module is not None:
        arguments |= {attribute: getattr(module, attribute) for attribute in spelling.attributes}
    try:
        bound = _signature(spelling.reader).bind(*node.args, **arguments)
    except TypeError as error:
        raise QuantizationError(f"{place}: {name} cannot be read here: {error}") from None
    try:
        read = spelling.reader(*bound.args, **bound.kwargs)
    except Refusal as refusal:
        raise QuantizationError(f"{place}: {name}: {refusal}") from None
    if what in spelling.writes:
        read = read._replace(in_place=True)
    return Call(known if read.kind is None else _KINDS[read.kind], place, module, read)


def packable(node: fx.Node, modules: Mapping[str, nn.Module]) -> Call:
    """Reads a traced node that the packed format can hold.

    Raises:
        QuantizationError: the format cannot hold it; see also `call`.
    """
    found = call(node, modules)
    refusal = found.operation.refusal(found.read, node, found.module)
    if refusal:
        raise QuantizationError(f"{found.place}: {refusal}")
    return found


def kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The kind of a node's operation. Raises as `call` does."""
    return call(node, modules).kind
