"""`make site`: the pages, the references that are written into them, the links, and the site in a browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import params_reference
import pytest
import references
import site_pages
import yaml
from playwright.sync_api import Browser

from micronet import params
from sweeps.spec import Spec
from tests.support.chromium import chromium, page_of
from tests.support.places import ROOT

PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "templates" not in path.parts]
FAINT = (ROOT / "tests/support/faint.js").read_text(encoding="utf-8").rstrip().removesuffix(";")


class Config(yaml.SafeLoader):
    """mkdocs.yml without the objects that it asks for."""


Config.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for one in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from leaves(one)


def test_the_navigation_names_every_page_once():
    named = list(leaves(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Config)["nav"]))
    assert sorted(named) == sorted(str(path.relative_to(ROOT / "docs")) for path in PAGES)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_lists_and_tables_stand_apart_so_that_the_site_reads_them_as_github_does(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for block in text.split("\n\n"):
        lines = block.strip("\n").splitlines()
        starts = [bool(re.match(r"(- |\* |\d+\. |\|)", line)) for line in lines]
        assert not any(starts[1:]) or starts[0] or lines[0].startswith(("#", " ")), lines[0]


# --- references ---


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each key's row, by its table and its name."""
    found, title = {}, ""
    for line in text.splitlines():
        if line.startswith("#"):
            title = line.strip("# ")
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            found[f"{title}.{cells[0].strip('` ')}"] = cells
    return found


ROWS = rows(params_reference.reference())


def test_every_key_of_params_and_of_an_architecture_has_a_row_with_a_meaning_a_type_and_a_default():
    for name in ("params.seed", "data.source", "image format.fit", "engine.processes", "train.epochs", "augment.flip"):
        assert name in ROWS
    known = {key for section in params_reference.places(params.Params) for key in section.model_fields}
    assert {key.replace("kind", "class") for key in known} <= {name.rpartition(".")[2] for name in ROWS}
    assert all(len(cells) in (5, 6) and all(cells[:4]) for cells in ROWS.values())


def test_a_table_of_keys_has_a_column_of_sources_where_a_key_has_one():
    for table in re.findall(r"(?:^\|.*\n)+", params_reference.reference(), re.MULTILINE):
        head, _, *keys = (re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines())
        assert {len(cells) for cells in keys} == {len(head)}
        assert ("source" in map(str.strip, head)) == any("arxiv.org" in cells[-1] for cells in keys)


def test_a_row_says_what_the_typed_params_hold():
    _, _, kind, default, bounds, source = ROWS["augment.mixup_alpha"]
    assert (kind, default, bounds) == ("number", "`0.0`", "≥ 0, ≤ 1,000,000,000")
    assert source == "[arXiv:1710.09412](https://arxiv.org/abs/1710.09412)"
    assert ROWS["train.learning_rate"][3:5] == ["required", "> 0, ≤ 1,000,000,000"]
    assert ROWS["prune.rounds"][4] == "≥ 1, ≤ 100,000", "of two bounds the narrower one"
    assert ROWS["quantize.layer_bits"][2:5] == ["keys with a whole number each", "`{}`", "each ≥ 1, ≤ 8"]
    assert ROWS["train.batch_size"][2] == "whole number or `auto`"
    assert ROWS["own model.class"][2] == "text" and ROWS["own model.file"][2] == "path"
    assert ROWS["mobilenet.strides"][3] == "of other keys"
    assert ROWS["prune.method"][5].count("https://arxiv.org/abs/") == 4


@pytest.mark.parametrize(
    "annotation, said",
    [
        (list[int], "list of whole numbers"),
        (tuple[int, int], "list of 2 whole numbers"),
        (list[Literal["a", "b"]], "list of `a` or `b`"),
        (Literal["off"] | list[Literal["a"]], "`off` or list of `a`"),
        (dict[str, Any], "keys"),
        (list[Any], "list"),
        (Annotated[float, "of any kind"] | None, "number or null"),
    ],
)
def test_a_type_is_said_in_words(annotation, said):
    assert params_reference.kind(annotation) == said


def test_every_section_that_a_row_leads_to_has_a_table():
    text = params_reference.reference()
    anchors = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= anchors


@pytest.mark.parametrize("name", references.TABLES)
def test_the_committed_reference_is_that_of_the_code(name):
    assert references.render(name) == (ROOT / f"docs/reference/{name}.md").read_text(encoding="utf-8"), "make docs"


def test_every_key_of_a_sweep_has_a_row_with_a_meaning_and_a_type():
    found = rows(references.keys_of_a_sweep())
    assert {f"spec.{key}" for key in Spec.model_fields} < found.keys() and all(all(row[:4]) for row in found.values())
    assert found["spec.reference"][2] == "text or null" and found["spec.grid"][2] == "keys with a list each"
    assert found["search.rungs"][2] == "list of [section](#budget)"


def test_every_target_of_the_makefile_is_in_the_table_with_its_purpose():
    targets = references.targets()
    assert targets.strip().startswith("## ") and "|---|---|\n\n" not in targets
    listed = re.findall(r"^\| `make ([a-z-]+)` \| (.+) \|$", targets, re.MULTILINE)
    assert {"score", "demo", "site", "doctor"} < dict(listed).keys() and all(purpose for _, purpose in listed)


def test_the_reference_of_python_names_what_the_rooms_hand_on():
    asked = set(re.findall(r"^::: (\S+)$", site_pages.names(), re.MULTILINE))
    assert {"models.build", "micronet.packed.module.load_packed", "micronet.scoring.counting.operations"} < asked


def test_a_page_without_a_part_to_fill_stays_as_it_is():
    assert site_pages.on_page_markdown("# A page\n\n<!-- a comment -->\n") == "# A page\n\n<!-- a comment -->\n"


# --- the built site ---


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make site` builds it, strictly: a link or a page that leads nowhere fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


class Links(HTMLParser):
    """What a page leads to or shows, and the places in it that others can lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.places = list[str](), set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.places |= {found[name] or "" for name in ("id", "name") if name in found}
        self.links += [found[name] or "" for name in ("href", "src") if name in found]


@pytest.mark.slow
def test_every_link_picture_and_script_of_the_site_is_in_it(site):
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= len(PAGES)
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("https", "mailto", "data"), f"{path.name}: {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.name}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].places, f"{path.name}: {link}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_pages_from_the_disk_fetch_nothing_fit_the_window_and_can_be_read(site, browser, width, scheme):
    for name in ("index", "tutorial", "reference/params", "reference/python", "record"):
        opened = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
        with page_of(browser, site / f"{name}.html", **opened) as page:
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            light = sum(int(part) for part in re.findall(r"\d+", background)[:3]) > 3 * 128
            assert light == (scheme == "light"), name
            page.wait_for_timeout(300)  # colours fade in
            assert page.evaluate(FAINT) == [], name


@pytest.mark.slow
def test_the_search_finds_a_key_on_a_page_from_the_disk(site, browser):
    with page_of(browser, site / "index.html", viewport={"width": 1440, "height": 900}) as page:
        page.get_by_placeholder("Search").click()
        page.get_by_text("Type to start searching").wait_for()
        page.keyboard.type("cost_exponent")
        page.locator(".md-search-result__link").first.wait_for()
        found = page.locator(".md-search-result__link").evaluate_all("links => links.map((link) => link.href)")
        assert any("/reference/params.html" in link for link in found)
