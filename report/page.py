"""Fills the templates: one self-contained file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from micronet.errors import shown
from micronet.export.web import MOST_BYTES, RUNNER, module
from report.charts import CONFIG
from report.context import Context
from report.differences import Setting
from report.errors import ReportError
from report.gathered import Run
from report.glance import glance, relative_to_another
from report.parts import BUILDERS, FORMS, filled, part

FOLDER = Path(__file__).parent
TEMPLATES = FOLDER / "templates"
LONGEST = 2_000  # characters of a text
SHOWS_VEGA = "window.vegaEmbed = vegaEmbed;"


@dataclass(frozen=True)
class Side:
    """A run on the page, with each section's content."""

    key: str  # prefix of its element ids
    run: Run
    parts: dict[str, dict[str, Any] | None]

    @property
    def packed(self) -> Markup:
        """The packed file in base 64 if a browser can run it, else empty."""
        model, data = self.run.model, self.run.packed
        fits = model is not None and model.arithmetic != "half" and len(data) <= MOST_BYTES
        return Markup(base64.b64encode(data).decode() if fits else "")


@dataclass(frozen=True)
class Settings:
    """The table of params: a column for the run, and one for what it is compared with, if anything."""

    rows: Sequence[Setting]
    here: str
    there: str | None
    note: str = ""  # why there is no comparison


def environment() -> jinja2.Environment:
    """All template values are escaped; undefined names are errors."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
        finalize=_finalized,
    )
    made.filters["embedded"] = embedded
    made.globals["filled"] = filled
    return made


def _finalized(value: Any) -> Any:
    """Template text comes from files: no control character of it reaches the page."""
    return shown(value, LONGEST) if type(value) is str else value


def embedded(content: Any) -> Markup:
    """JSON inside a script element, which no text in it can end."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def texts() -> dict[str, str]:
    """The texts of charts and their controls; like all prose they are in the templates."""
    module_ = environment().get_template("texts.html.j2").module
    return {name: str(text).strip() for name, text in module_.TEXTS.items()}  # type: ignore[attr-defined]


def render(title: str, runs: Sequence[Run], settings: Settings, context: Context, metrics: Sequence[Any] = ()) -> str:
    """The page of one run, or of two side by side.

    Args:
        metrics: rows of differences between two runs.

    Raises:
        ReportError: a template uses something missing.
    """
    sides = [
        Side(key, run, {name: part(name, run, context) for name in BUILDERS})
        for key, run in zip(("a", "b"), runs, strict=False)
    ]
    library, script = _inline(vega()), _inline((FOLDER / "report.mjs").read_text(encoding="utf-8"))
    runnable = [side for side in sides if side.packed]
    runner = _inline(module(*RUNNER, "pictures.mjs", "page.mjs")) if runnable else ""
    scripts = [text for text in (library, script, runner) if text]
    try:
        return (
            environment()
            .get_template("page.html.j2")
            .render(
                title=title,
                sides=sides,
                settings=settings,
                metrics=metrics,
                glance=glance(runs) if len(runs) > 1 else [],
                apart=relative_to_another(runs),
                policy=Markup(policy(scripts)),
                style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
                scripts=[Markup(text) for text in scripts],
                config=CONFIG,
                runnable=runnable,
            )
        )
    except (jinja2.TemplateError, *FORMS) as error:
        raise ReportError(f"report/templates: {' '.join(str(error).split())}") from None


def _inline(script: str) -> str:
    """A script made safe to inline in a page."""
    if "</script" in script.lower() or "<!--" in script:
        raise ReportError("a script of the page would end in its middle")
    return script


def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, in the installed package's version."""
    import vl_convert

    return vl_convert.javascript_bundle(SHOWS_VEGA)


def policy(scripts: Sequence[str]) -> str:
    """The page's Content-Security-Policy: these scripts run, and nothing is fetched."""
    allowed = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
