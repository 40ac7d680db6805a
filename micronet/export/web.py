"""A packed model as a web page that classifies images in the browser, from disk, with the network off.

The page contains everything, because browsers load no module for a page opened from disk: the runner, the packed file
in base 64, and a policy that allows nothing else. The runner is also exported as an ES module for other pages.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from jinja2 import Environment, StrictUndefined

from micronet.errors import shown
from micronet.export.errors import ExportError
from micronet.export.targets import Export, Options
from micronet.packed.model import PackedModel

PAGE = Path(__file__).with_name("page")
RUNNER = ("reader.mjs", "micronet.mjs")
MOST_BYTES = 1 << 26  # of a packed file for a page


def export(model: PackedModel, data: bytes, options: Options) -> Export:
    """`index.html`, which needs nothing else; `micronet.mjs`, the runner; and the packed file.

    Raises:
        ExportError: the model has 16-bit floats, or the file is too large for a page.
    """
    if model.arithmetic == "half":
        raise ExportError("the browser runs integers, this model holds 16-bit floats; the target onnx takes those")
    if len(data) > MOST_BYTES:
        raise ExportError(f"a packed file of {len(data):,} bytes is too large for a page, {MOST_BYTES:,} are the most")
    page = _page(model, data)
    runner = module(*RUNNER).encode()
    files = {"index.html": page, "micronet.mjs": runner, f"{options.name}.safetensors": data}
    table = [("index.html", f"{len(page):,} bytes, of which {len(data):,} are the packed file, as base 64")]
    table.append(("micronet.mjs", f"{len(runner):,} bytes"))
    return Export({PurePosixPath(name): content for name, content in files.items()}, table, list(_notes(model)))


def module(*names: str) -> str:
    """Modules of the page as one, without their imports from one another."""
    texts = ((PAGE / name).read_text(encoding="utf-8") for name in names)
    return "\n".join(re.sub(r'^import .* from "\./.*";\n', "", text, flags=re.MULTILINE) for text in texts)


def _page(model: PackedModel, data: bytes) -> bytes:
    script = module(*RUNNER, "pictures.mjs", "page.mjs")
    style = (PAGE / "style.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; script-src {_allowed(script)}; style-src {_allowed(style)}; img-src data: blob:"
    policy += "; base-uri 'none'; form-action 'none'"
    # Nothing is escaped, because scripts have no escapes: all of it is ours except the title, which is already HTML.
    environment = Environment(undefined=StrictUndefined, autoescape=False)
    template = environment.from_string((PAGE / "index.html").read_text(encoding="utf-8"))
    model_text = base64.b64encode(data).decode()
    page = template.render(title=_title(model), policy=policy, style=style, script=script, model=model_text)
    return f"{page}\n".encode()


def _allowed(text: str) -> str:
    """An inline script or style in a Content-Security-Policy: its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _title(model: PackedModel) -> str:
    """The page's title, as HTML."""
    named = [shown(spec.get("name", spec.get("class", "network")), 60) for spec in model.specs or ()]
    return html.escape(f"{' + '.join(dict.fromkeys(named)) or 'A packed network'} in the browser")


def _notes(model: PackedModel) -> Iterator[str]:
    yield "index.html opens from the disk, with the network off; it fetches nothing, and its policy forbids that."
    yield (
        "The browser decodes a picture, so a JPEG may differ by a level or two from what `micronet.predict` reads, and "
        "a large one by more, which that decodes at a smaller size; resizing differs by a level at most. "
        "Most browsers read no TIFF."
    )
    yield "Pages that come by plain http have no crypto.subtle; there the file's digest is not checked."
    if model.image[0] not in (1, 3):
        yield f"The model takes images of {model.image[0]} channels, which no picture has; the runner takes pixels."
    if model.logit_scale is None or len(model.networks) > 1:
        yield "The file does not say what its logits are worth, so the bars show their order, without a confidence."
