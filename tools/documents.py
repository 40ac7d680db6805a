"""Fills the templates of docs/templates/: they hold the words, the commands supply the facts.

A template that uses something missing is a one-line error: `Facts` name the file of metrics/ that lacks it, anything
else the line of the template.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import jinja2
from _tool import ROOT, ToolError

from micronet.data.wording import counted

TEMPLATES = ROOT / "docs/templates"


def fixed(value: float | str, digits: int) -> str:
    """`3.14`; also takes numbers as text, as tables hold them."""
    return f"{float(value):.{digits}f}"


def percent(value: float | str | None, digits: int = 2, missing: str | None = None) -> str:
    """`91.37 %`; `missing` for None, if a template allows that."""
    if value is None and missing is not None:
        return missing
    return f"{fixed(value, digits)} %"


def share(value: float | str) -> str:
    """`70%`, from a fraction."""
    return f"{float(value):.0%}"


def score(value: float | str, digits: int = 4) -> str:
    """`0.0357`."""
    return fixed(value, digits)


def thousands(value: float | str) -> str:
    """`28,782`, an integer."""
    return f"{float(value):,.0f}"


def short(value: float | str) -> str:
    """`0.25`, `1`: no superfluous digits."""
    return f"{float(value):g}"


def signed(value: float, digits: int = 2) -> str:
    """`+1.96`."""
    return f"{value:+.{digits}f}"


FILTERS = (fixed, percent, share, score, thousands, short, signed, counted)


def environment(templates: Path = TEMPLATES) -> jinja2.Environment:
    """Undefined names are errors; a line holding only a block leaves no line."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    made.filters |= {one.__name__: one for one in FILTERS}
    return made


def render(name: str, facts: dict[str, Any], templates: Path = TEMPLATES) -> str:
    """The document of `templates`/NAME.md.j2, ending in one newline.

    Raises:
        ToolError: the template uses something missing, or a fact is not of the expected type.
    """
    try:
        text = environment(templates).get_template(f"{name}.md.j2").render(facts)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise ToolError(f"{_place(error, name)}: {' '.join(str(error).split())}") from None
    return text.rstrip("\n") + "\n"


def _place(error: Exception, name: str) -> str:
    """The template and line where rendering stopped: jinja2 puts them into the traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".j2")]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else f"{name}.md.j2"
