"""The pages in Chromium, from the disk and with the network off: light and dark, on a phone, a screen and paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from micronet import params as parameters
from report.context import Context
from report.differences import recipe_digest, settings
from report.gathered import gather
from report.page import Settings, render, texts
from report.sources import Folder
from tests.support.chromium import chromium, page_of
from tests.support.pictures import encoded, noise
from tests.support.reports import PEERS, predictions

pytestmark = pytest.mark.slow
SAMPLE_IMAGES = 500
SHAPES = [(scheme, width) for scheme in ("light", "dark") for width in (390, 1440)]
# Text that can be seen, with its colour and the opaque colour below it: of a chart the square that it stands on.
TEXTS = """() => {
  const colour = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((one, i) => a * one + (1 - a) * below[i]);
  const paper = (element) => {
    if (!element) return [255, 255, 255];
    const own = colour(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, paper(element.parentElement));
  };
  const luminance = (rgb) => {
    const linear = (one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map((one) => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  for (const svg of document.querySelectorAll(".chart svg")) {
    const marks = svg.querySelectorAll(".mark-rect path, .mark-rect rect");
    const squares = Array.from(marks, (mark) => [mark, mark.getBoundingClientRect()]);
    for (const text of svg.querySelectorAll("text")) {
      const place = text.getBoundingClientRect();
      if (!text.textContent || !place.width) continue;
      const [x, y] = [place.x + place.width / 2, place.y + place.height / 2];
      let below = paper(svg);
      for (const [mark, box] of squares) {
        if (x < box.left || x > box.right || y < box.top || y > box.bottom) continue;
        const style = getComputedStyle(mark);
        if (style.fill === "none") continue;
        const fill = colour(style.fill);
        below = over([...fill.slice(0, 3), fill[3] * Number(style.opacity) * Number(style.fillOpacity)], below);
      }
      found.push([text.textContent, contrast(colour(getComputedStyle(text).fill).slice(0, 3), below)]);
    }
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest("svg, script, style")) continue;
    const below = paper(element);
    const ink = colour(getComputedStyle(element).color);
    found.push([walker.currentNode.textContent.trim(), contrast(over(ink, below), below)]);
  }
  return found;
}"""
MARKS = """() => Array.from(document.querySelectorAll("figure.plot"), (figure) => [
  figure.querySelector("figcaption strong").textContent,
  Array.from(figure.querySelectorAll(".mark-symbol, .mark-rect, .mark-line, .mark-area"))
    .flatMap((group) => Array.from(group.querySelectorAll("path, rect")))
    .filter((mark) => !mark.closest(".role-legend, .role-axis, .background"))
    .filter((mark) => mark.getBoundingClientRect().width > 0).length,
])"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(committed: Path, tmp_path_factory: pytest.TempPathFactory, sample_data, sample_manifest) -> Path:
    """The page of the committed run, its pictures from the sample, its seeds made up."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(committed, folder / "run", symlinks=True)
    shutil.copy(sample_manifest, folder / "run/data/manifest.json")
    rows = ", ".join(
        f'{{"seed": {seed}, "validation_accuracy_percent": {91 + seed / 10}, "challenge_score": {0.0023 + seed / 1e5}}}'
        for seed in range(3)
    )
    mean = '"mean": {"challenge_score": 0.00231}, "spread": {"challenge_score": 0.00001}'
    (folder / "run/metrics/seeds.json").write_text(f'{{{mean}, "rows": [{rows}]}}')
    # Answers to the images of the sample, and a score that is theirs.
    answered = predictions(SAMPLE_IMAGES)
    (folder / "run/metrics/predictions.csv").write_text(answered)
    run = gather(Folder(folder / "run"), "this checkout", "0123456789ab-dirty")
    right = sum(row["actual"] == row["predicted"] for row in run.predictions)
    run.score = {**(run.score or {}), "test_accuracy_percent": 100 * right / len(run.predictions)}
    run.stages["prepare_data"] = {"test_images": SAMPLE_IMAGES}
    run.params = {**(run.params or {}), "data": sample_data.model_dump()}
    run.seeds = {**(run.seeds or {}), "params_digest": recipe_digest(parameters.parse(run.params))}
    table = Settings(settings(run.params, {**run.params, "seed": 7}), run.name, "main")
    page = render("Recipe record", [run], table, Context([run], PEERS, folder / "run", texts()))
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def drawn(page: Page) -> Page:
    page.wait_for_function("document.documentElement.dataset.drawn")
    return page


@pytest.mark.parametrize(("scheme", "width"), SHAPES)
def test_every_chart_has_marks_and_every_text_can_be_read_and_nothing_is_wider_than_the_screen(
    browser, report, scheme, width
):
    with page_of(browser, report, color_scheme=scheme, viewport={"width": width, "height": 900}) as page:
        drawn(page)
        marks = page.evaluate(MARKS)
        assert len(marks) == 16 and [name for name, count in marks if not count] == []
        assert page.locator("img").count() > 0
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        texts_ = page.evaluate(TEXTS)
        assert len(texts_) > 500 and [text for text in texts_ if text[1] < 4.5] == []
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")


def test_the_keyboard_reaches_every_chart_table_and_control(browser, report):
    reached = set()
    with page_of(browser, report, viewport={"width": 1440, "height": 900}) as page:
        drawn(page)
        everything = page.evaluate(
            """() => {
              const kinds = "a, summary, .chart, .scroll, select, input:not([type=radio]), input:checked";
              const all = document.querySelectorAll(kinds);
              const seen = Array.from(all).filter((each) => each.checkVisibility());
              seen.forEach((each, place) => { each.dataset.place = place; });
              return seen.length;
            }"""
        )
        for _ in range(everything + 20):
            page.keyboard.press("Tab")
            place, outline = page.evaluate(
                "[document.activeElement.dataset.place, getComputedStyle(document.activeElement).outlineStyle]"
            )
            if place is None and reached:
                break
            assert outline != "none", "where the focus is cannot be seen"
            reached.add(place)
        assert reached == {str(place) for place in range(everything)}


def test_controls_change_what_their_chart_shows(browser, report):
    with page_of(browser, report, viewport={"width": 1440, "height": 900}) as page:
        drawn(page)
        for section, control in (("against", "deck"), ("layers", "deck"), ("sparsity", None)):
            place = page.locator(f"#{section} figure.plot").last
            before = place.locator("svg").inner_html()
            if control:
                place.get_by_label(control, exact=True).check()
            else:
                place.get_by_label("Layer").select_option("all layers")
            page.wait_for_function(
                "([place, before]) => place.querySelector('svg').innerHTML !== before",
                arg=[place.element_handle(), before],
            )


def test_a_screen_that_is_turned_keeps_what_was_chosen_and_no_legend_is_cut(browser, report):
    with page_of(browser, report, viewport={"width": 1440, "height": 900}) as page:
        drawn(page)
        chart = page.locator("#against .chart")
        chart.get_by_label("deck", exact=True).check()
        wide = chart.locator(".role-legend text").count()
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_function(
            """() => {
              const chart = document.querySelector("#against .chart");
              const svg = chart.querySelector("svg").getBoundingClientRect();
              const inside = ({ top, left, right }) => top >= svg.top && left >= svg.left && right <= svg.right + 1;
              const box = (text) => text.getBoundingClientRect();
              const texts = Array.from(chart.querySelectorAll(".role-legend text"), box);
              return svg.width < 390 && new Set(texts.map(({ top }) => top)).size > 1 && texts.every(inside);
            }"""
        )
        assert chart.locator(".role-legend text").count() == wide
        assert chart.get_by_label("deck", exact=True).is_checked()


def test_the_packed_model_runs_in_the_page(browser, report):
    with page_of(browser, report, viewport={"width": 390, "height": 800}) as page:
        drawn(page).get_by_text("Ready.").wait_for()
        page.locator("#picture").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": encoded(noise())})
        page.locator(".bars li").first.wait_for()
        assert page.locator(".bars li").count() == 10
        assert page.get_by_role("status").inner_text().endswith((" ms.", " passes."))
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390


def test_it_prints_light_without_what_paper_cannot_do(browser, report):
    with page_of(browser, report, color_scheme="dark", viewport={"width": 794, "height": 1100}) as page:
        drawn(page)
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator("nav").is_visible() and not page.locator("#try").is_visible()
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 794
        assert page.pdf().startswith(b"%PDF")


def test_two_runs_stand_side_by_side_on_a_screen_and_one_below_the_other_on_a_phone(browser, committed, tmp_path):
    runs = [gather(Folder(committed), name, commit) for name, commit in (("main", "0" * 12), ("other", "1" * 12))]
    table = Settings(settings(runs[0].params, {}), "main", "other")
    metrics = [("metrics/score.test_accuracy_percent", "90", "91", "+1")]
    page_text = render("main and other", runs, table, Context(runs, PEERS, committed, texts()), metrics)
    (tmp_path / "compare.html").write_text(page_text, encoding="utf-8")
    for width in (390, 1440):
        with page_of(browser, tmp_path / "compare.html", viewport={"width": width, "height": 900}) as page:
            drawn(page)
            marks = page.evaluate(MARKS)
            assert len(marks) == 30 and [name for name, count in marks if not count] == []
            one, other = (box.bounding_box() for box in page.locator("#headline .side").all())
            assert (one["y"] == other["y"]) == (width == 1440)
            assert page.evaluate("document.scrollingElement.scrollWidth") <= width
            page.locator("#picture").set_input_files(
                {"name": "a.png", "mimeType": "image/png", "buffer": encoded(noise())}
            )
            page.locator(".bars li").nth(19).wait_for()
            ids = page.evaluate("Array.from(document.querySelectorAll('[id]'), (each) => each.id)")
            assert len(ids) == len(set(ids))
