"""How a file of settings is read: YAML 1.2 as DVC reads it, within the limits of what settings can be.

The file may come from anybody. Its size, its nesting and the expansion of its aliases and merge keys are limited before
any value is built, so that reading ends within a second, and a failure is one line.
"""

from __future__ import annotations

import copy
import functools
import io
import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from micronet.errors import MicronetError, shown
from micronet.files import NotRegular, TooLarge, regular_bytes

# The longest file of settings in this repository has 9 kB, 800 values and 7 levels.
MOST_BYTES = 1_000_000
MOST_VALUES = 10_000
MOST_LEVELS = 40
LONGEST_NUMBER = 3_000  # digits of an integer: Python prints at most 4,300
TAGS = "tag:yaml.org,2002:"
LONGEST_REASON = 160  # characters, to leave room for the file name and line number


class UnreadableError(MicronetError):
    """A file of settings cannot be read, or is not YAML; the message is one line."""

    exit_code = 2


def read(path: Path | str) -> Any:
    """The content of a YAML file, as DVC's parser reads it. A duplicate key is a fault.

    Raises:
        UnreadableError: it is missing, not a regular file, too large, not text, not YAML, or refers to itself.
    """
    return copy.deepcopy(_parsed(str(path), _text(path)))


def parse(content: bytes, name: str) -> Any:
    """As `read`, for content already in memory; `name` is what messages call it."""
    if len(content) > MOST_BYTES:
        raise _too_long(name)
    return copy.deepcopy(_parsed(name, _decoded(content, name)))


@functools.lru_cache(maxsize=32)  # a command reads the same few files several times, and the parser is slow
def _parsed(path: str, text: str) -> Any:
    """The content of a text; `path` is what messages call it."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.Constructor = _Composer, _Constructor
    try:
        with warnings.catch_warnings(action="ignore"):  # duplicate anchors: the later one counts, as in DVC
            node = yaml.compose(text)
        if node is None:
            return None
        _Expanded(path).measure(node)
        return yaml.constructor.construct_document(node)
    except MarkedYAMLError as error:
        place = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise _not_yaml(path, reason, place) from None
    except (YAMLError, RecursionError) as error:
        raise _not_yaml(path, str(error)) from None
    except UnreadableError:
        raise
    except Exception as error:  # the parser can fail in many ways on a damaged file
        raise _not_yaml(path, str(error) or type(error).__name__) from None


def _not_yaml(path: Path | str, reason: str, place: str = "") -> UnreadableError:
    return UnreadableError(f"{path}: not readable as YAML: {shown(' '.join(reason.split()), LONGEST_REASON)}{place}")


def _too_long(path: Path | str) -> UnreadableError:
    return UnreadableError(f"{path}: cannot be read (longer than {MOST_BYTES:,} bytes, which no settings are)")


def _text(path: Path | str) -> str:
    """The text of a regular file, with line ends as `\\n`. Does not wait if it is a pipe without a writer."""
    try:
        content = regular_bytes(path, MOST_BYTES)
    except FileNotFoundError:
        ours = Path(path).name == "params.yaml"
        way = "`make use RECIPE=laptop` makes it" if ours else "one that is there would work"
        raise UnreadableError(f"{path}: there is no such file ({way})") from None
    except NotRegular:
        raise UnreadableError(f"{path}: cannot be read (not a regular file; one with settings would work)") from None
    except TooLarge:
        raise _too_long(path) from None
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # a name with a NUL, or one that cannot be encoded
        raise UnreadableError(f"{path}: cannot be read ({error})") from None
    return _decoded(content, path)


def _decoded(content: bytes, path: Path | str) -> str:
    try:
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()
    except UnicodeDecodeError as error:
        raise _not_yaml(path, str(error)) from None


class _Composer(Composer):
    """Stops at the first value beyond the allowed number or depth, while the text is still being read."""

    values = levels = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.values += 1
        self.levels += 1
        if self.values > MOST_VALUES:
            raise self._fault(f"more than {MOST_VALUES:,} values")
        if self.levels > MOST_LEVELS:
            raise self._fault(f"nested more than {MOST_LEVELS} levels deep")
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node

    def _fault(self, reason: str) -> ComposerError:
        return ComposerError(problem=reason, problem_mark=self.parser.peek_event().start_mark)


class _Constructor(SafeConstructor):
    """Reports text that does not match its tag or form: `!!float x`, `2020-13-45`."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            if isinstance(node, ScalarNode) and node.tag == f"{TAGS}int" and len(node.value) > LONGEST_NUMBER:
                raise ValueError(f"more than {LONGEST_NUMBER:,} digits")
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            text = repr(shown(node.value, 40)) if isinstance(node, ScalarNode) else "what stands here"
            why = "" if isinstance(error, LookupError) else f" ({error})"
            problem = f"{text} is no {str(node.tag).removeprefix(TAGS)}{why}"
            raise ConstructorError(problem=problem, problem_mark=node.start_mark) from None


class _Expanded:
    """How many values, on how many levels, a tree has once every alias and merge is expanded."""

    def __init__(self, path: Path | str):
        self.path = path
        self.known: dict[int, tuple[int, int] | None] = {}  # by node id; None while it is being measured

    def measure(self, node: Node) -> tuple[int, int]:
        """(values, levels). Raises `UnreadableError` for more than settings can have, and for a cycle."""
        if id(node) in self.known:
            found = self.known[id(node)]
            if found is None:
                raise self._fault(node, "an alias refers to what it stands in")
            return found
        self.known[id(node)] = None
        inner: list[Node] = []
        if isinstance(node, MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            inner = node.value
        values, levels = 1, 0
        for part in inner:
            more, deep = self.measure(part)
            values, levels = values + more, max(levels, deep)
        if values > MOST_VALUES:
            raise self._fault(node, f"more than {MOST_VALUES:,} values, with what the aliases stand for")
        if levels >= MOST_LEVELS:
            raise self._fault(node, f"nested more than {MOST_LEVELS} levels deep, with what the aliases stand for")
        self.known[id(node)] = values, levels + 1
        return values, levels + 1

    def _fault(self, node: Node, reason: str) -> UnreadableError:
        return _not_yaml(self.path, reason, f" (line {node.start_mark.line + 1})")
