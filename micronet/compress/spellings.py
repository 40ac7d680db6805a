"""How a network may spell the operations that this project knows: the arguments of each spelling and their meaning.

A reader is a function with the parameters of the spelling, by torch's names and in torch's order. It returns what the
call means, or refuses an argument that is not supported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import fx

from micronet.compress.functions import Ends, Function


class Read(NamedTuple):
    """The meaning of a call in a traced network."""

    inputs: tuple[fx.Node, ...]  # the values that it reads, in order
    settings: Any = None  # those of its kind; None if it has none
    in_place: bool = False  # it writes into its first input
    kind: str | None = None  # the kind of this call, where the arguments decide it


class Mode(int):
    """The training mode seen while tracing: always False. Records whether the forward tested it, `if self.training`.

    An operation that only receives it, `F.dropout(x, p, self.training)`, can be kept for training.
    """

    def __new__(cls) -> Mode:
        mode = super().__new__(cls, 0)
        mode.asked = False
        return mode

    asked: bool

    def __bool__(self) -> bool:
        self.asked = True
        return False


class Refusal(Exception):
    """An argument that no kind of operation takes; the message is the reason."""


@dataclass(frozen=True)
class Window:
    """The windows of a pool or convolution; pairs are (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False  # a window that the edge cuts off counts too
    divisor: int | None = None  # of an average; None: the number of places in a window

    @property
    def apart(self) -> bool:
        """Whether each value of the map is in at most one window, and no window extends beyond the map."""
        return self.stride == self.kernel and self.padding == (0, 0) and self.dilation == (1, 1)

    def size(self, sides: tuple[int, ...]) -> tuple[int, int]:
        """How many whole windows fit on a map of this height and width, in each direction."""
        each = zip(sides, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = (
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, padding, dilation in each
        )
        return height, width


@dataclass(frozen=True)
class Mean:
    """A mean over dimensions of (N, C, H, W), as given; () is over the whole map, to (N, C, 1, 1)."""

    dimensions: tuple[int, ...] = ()
    keeps: bool = True


@dataclass(frozen=True)
class Scale:
    """A product with a number."""

    factor: float


@dataclass(frozen=True)
class Shift:
    """factor * value + offset."""

    offset: float
    factor: float = 1.0


@dataclass(frozen=True)
class Added:
    """first + alpha * second."""

    alpha: float = 1.0


@dataclass(frozen=True)
class Concat:
    """Values concatenated along a dimension."""

    dimension: int


def _value(given: Any, what: str = "input") -> fx.Node:
    if not isinstance(given, fx.Node):
        raise Refusal(f"{what} is a constant, a value of the network would work")
    return given


def _number(given: Any, what: str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise Refusal(f"{what} is no finite number")
    return float(given)


def _pair(given: Any, what: str) -> tuple[int, int]:
    pair = (given, given) if isinstance(given, int) else given
    if isinstance(pair, list | tuple) and len(pair) == 1:
        pair = (*pair, *pair)
    if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(type(side) is int for side in pair)):
        raise Refusal(f"{what}={given} is no number and no pair of numbers")
    return pair[0], pair[1]


def reads(input: Any) -> Read:
    return Read((_value(input),))


def relu(input: Any, inplace: bool = False) -> Read:
    return Read((_value(input),), in_place=bool(inplace))


def plain(name: str) -> Callable[..., Read]:
    """The reader of a function without arguments."""

    def reader(input: Any, inplace: bool = False) -> Read:
        return Read((_value(input),), Function(name), bool(inplace))

    return reader


def leaky_relu(input: Any, negative_slope: Any = 0.01, inplace: bool = False) -> Read:
    return Read((_value(input),), Function("leaky_relu", (_number(negative_slope, "negative_slope"),)), bool(inplace))


def elu(input: Any, alpha: Any = 1.0, inplace: bool = False) -> Read:
    return Read((_value(input),), Function("elu", (_number(alpha, "alpha"),)), bool(inplace))


def celu(input: Any, alpha: Any = 1.0, inplace: bool = False) -> Read:
    alpha = _number(alpha, "alpha")
    if alpha <= 0:
        raise Refusal(f"alpha={alpha:g} is not known, one above 0 would work")
    return Read((_value(input),), Function("celu", (alpha,)), bool(inplace))


def gelu(input: Any, *, approximate: Any = "none") -> Read:
    names = {"none": "gelu", "tanh": "gelu_tanh"}
    if approximate not in names:
        raise Refusal(f"approximate={approximate!r} is not known, 'none' and 'tanh' would work")
    return Read((_value(input),), Function(names[approximate]))


def softplus(input: Any, beta: Any = 1, threshold: Any = 20) -> Read:
    if (beta, threshold) != (1, 20):
        raise Refusal(f"beta={beta}, threshold={threshold} are not known, 1 and 20 would work")
    return Read((_value(input),), Function("softplus"))


def power(input: Any, exponent: Any) -> Read:
    read = Read((_value(input),))
    if isinstance(exponent, bool) or exponent not in range(2, 9):
        raise Refusal("the exponent is no whole number from 2 to 8, one of these would work")
    return read._replace(settings=Function("power", (float(exponent),)))


def relu6(input: Any, inplace: bool = False) -> Read:
    return Read((_value(input),), Ends(0.0, 6.0), bool(inplace))


def hardtanh(input: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> Read:
    return clamp(input, min_val, max_val)._replace(in_place=bool(inplace))


def clamp(input: Any, min: Any = None, max: Any = None) -> Read:
    low, high = (None if end is None or end in (-math.inf, math.inf) else _number(end, "an end") for end in (min, max))
    if low is not None and high is not None and low > high:
        raise Refusal(f"its ends {low:g} and {high:g} are no range, a lower end below the upper one would work")
    return Read((_value(input),), Ends(low, high))


def clamp_min(input: Any, min: Any) -> Read:
    return clamp(input, min)


def clamp_max(input: Any, max: Any) -> Read:
    return clamp(input, None, max)


def add(input: Any, other: Any, *, alpha: Any = 1) -> Read:
    alpha = _number(alpha, "alpha")
    if not isinstance(other, fx.Node):
        return Read((_value(input),), Shift(alpha * _number(other, "what is added")), kind="shift")
    if not isinstance(input, fx.Node):
        return Read((other,), Shift(_number(input, "what is added to"), alpha), kind="shift")
    return Read((input, other), Added(alpha))


def subtract(input: Any, other: Any, *, alpha: Any = 1) -> Read:
    return add(input, other, alpha=-_number(alpha, "alpha"))


def product(input: Any, other: Any) -> Read:
    if isinstance(input, fx.Node) and isinstance(other, fx.Node):
        return Read((input, other), kind="product")
    value, factor = (input, other) if isinstance(input, fx.Node) else (other, input)
    return Read((_value(value),), Scale(_number(factor, "the factor")))


def negative(input: Any) -> Read:
    return Read((_value(input),), Scale(-1.0))


def quotient(input: Any, other: Any, *, rounding_mode: Any = None) -> Read:
    if rounding_mode is not None:
        raise Refusal(f"rounding_mode={rounding_mode!r} is not known, None would work")
    divisor = 0.0 if isinstance(other, fx.Node) else _number(other, "the divisor")
    if not isinstance(input, fx.Node) or not divisor or not math.isfinite(1 / divisor):
        raise Refusal("divides by what is no number, or by 0; a value divided by a number would work")
    return Read((input,), Scale(1 / divisor))


def concat(tensors: Any, dim: Any = 0) -> Read:
    if not isinstance(tensors, list | tuple) or not tensors or not isinstance(dim, int):
        raise Refusal("a list of values, and the number of a dimension would work")
    return Read(tuple(_value(tensor, "one of the list") for tensor in tensors), Concat(dim))


def convolution(
    input: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, padding_mode: str = "zeros"
) -> Read:
    """For padding given as a word: half of the total on each side, rounded down."""
    kernel, gaps = _pair(kernel_size, "kernel_size"), _pair(dilation, "dilation")
    if isinstance(padding, str):
        extents = [step * (size - 1) if padding == "same" else 0 for size, step in zip(kernel, gaps, strict=True)]
        padding = tuple(extent // 2 for extent in extents)
    window = Window(kernel, _pair(stride, "stride"), _pair(padding, "padding"), gaps)
    return Read((_value(input),), window)


def average(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Read:
    window = _window(kernel_size, stride, padding, 1, ceil_mode)
    if divisor_override is not None and (type(divisor_override) is not int or divisor_override < 1):
        raise Refusal(f"divisor_override={divisor_override} is no whole number above 0")
    # Windows at the edge would be divided by the values they hold, so each edge would have its own divisor.
    if divisor_override is None and not count_include_pad and window.padding != (0, 0):
        raise Refusal("count_include_pad=False is not known where there is a padding, padding 0 would work")
    return Read((_value(input),), replace(window, divisor=divisor_override))


def maximum(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Read:
    if return_indices:
        raise Refusal("return_indices=True is not known, False would work")
    return Read((_value(input),), _window(kernel_size, stride, padding, dilation, ceil_mode))


def _window(kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any) -> Window:
    kernel = _pair(kernel_size, "kernel_size")
    return Window(
        kernel,
        kernel if stride is None or stride == [] else _pair(stride, "stride"),
        _pair(padding, "padding"),
        _pair(dilation, "dilation"),
        bool(ceil_mode),
    )


def mean(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Read:
    if dtype is not None:
        raise Refusal(f"dtype={dtype} is not known, None would work")
    dims = (dim,) if isinstance(dim, int) else dim
    if not isinstance(dims, list | tuple) or not dims or not all(type(each) is int for each in dims):
        raise Refusal(f"dim={dim} is not known, the height and width of a map, (2, 3), would work")
    return Read((_value(input),), Mean(tuple(dims), bool(keepdim)))


def greatest(input: Any, dim: Any = None, keepdim: bool = False) -> Read:
    return mean(input, dim, keepdim)


def global_maximum(input: Any, output_size: Any, return_indices: bool = False) -> Read:
    if return_indices:
        raise Refusal("return_indices=True is not known, False would work")
    return global_average(input, output_size)


def global_average(input: Any, output_size: Any) -> Read:
    if output_size not in (1, (1, 1), [1, 1]):
        raise Refusal(f"output_size={output_size} is not known, 1 would work")
    return Read((_value(input),), Mean())


def reshape(input: Any, *shape: Any, **named: Any) -> Read:
    """Any shape: `compress.graph` checks what becomes of maps of known shapes."""
    return Read((_value(input),))


def indexed(input: Any, index: Any) -> Read:
    whole = (slice(None), slice(None), None, None)
    if index not in (whole, (..., None, None)):
        raise Refusal("a part of a value is not known, a vector as a map, [:, :, None, None], would work")
    return Read((_value(input),))


def flatten(input: Any, start_dim: Any = 0, end_dim: Any = -1) -> Read:
    return Read((_value(input),))


def copy(input: Any, *, memory_format: Any = None) -> Read:
    return Read((_value(input),))


def contiguous(input: Any, memory_format: Any = None) -> Read:
    return Read((_value(input),))


def dropout(input: Any, p: float = 0.5, training: bool | Mode = True, inplace: bool = False) -> Read:
    if isinstance(training, Mode):
        return Read((_value(input),), settings=p, in_place=bool(inplace))
    if training:
        raise Refusal("drops at inference too; nn.Dropout, or training=self.training would work")
    return Read((_value(input),), in_place=bool(inplace))


def dropout_module(input: Any, inplace: bool = False) -> Read:
    return Read((_value(input),), in_place=bool(inplace))
