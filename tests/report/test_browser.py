"""The page in a real browser: it works from a file, speaks to nobody, and fits a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amsd.report.comparison import comparison_story
from amsd.report.page import write_page
from amsd.report.story import Story, run_story
from tests.report.synthetic import recipe, write_run

pytestmark = [pytest.mark.browser]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def files(a_run: Story, a_sweep: Story, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    died = run_story(write_run(folder / "died", recipe(), until=4))
    long = {"revision": "a" * 64}  # a word that no window of a phone holds
    other = write_run(folder / "other", recipe(method={"reward_multiplier": 50.0}, model=long), 0.5, seed=1)
    compared = comparison_story([a_run.path, other])
    stories = {"run": a_run, "sweep": a_sweep, "died": died, "compared": compared}
    return {name: write_page(story, folder / f"{name}.html") for name, story in stories.items()}


class Visit:
    """A page with everything that went wrong on it."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, **options: Any) -> None:
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.route("**/*", self._route)
        self.page.goto(file.as_uri())

    def _route(self, route: Any) -> None:
        if route.request.url.startswith(("file:", "data:")):
            route.continue_()
        else:
            self.requests.append(route.request.url)
            route.abort()

    def close(self) -> None:
        self.context.close()
        assert self.troubles == []
        assert self.requests == []


@pytest.mark.parametrize("name", ["run", "sweep", "died", "compared"])
def test_fits_every_window_light_and_dark(browser: Any, files: dict[str, Path], name: str) -> None:
    visit = Visit(browser, files[name])
    for width in (1280, 768, 375):
        visit.page.set_viewport_size({"width": width, "height": 900})
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        sizes = visit.page.evaluate(
            "[...document.querySelectorAll('.chart text')].filter((t) => t.checkVisibility())"
            ".map((t) => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a)"
        )
        assert min(sizes) >= 9.5  # text of figures stays readable at every width, in CSS pixels
        for scheme in ("light", "dark"):
            visit.page.emulate_media(color_scheme=scheme)
            ground = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
            assert (visit.page.evaluate(ground) < 60) == (scheme == "dark")
    visit.close()


def test_sections_are_there(browser: Any, files: dict[str, Path]) -> None:
    visit = Visit(browser, files["sweep"])
    for section in ("searched", "tradeoff", "pictures", "curves", "parameters", "adjoint", "tables"):
        assert visit.page.locator(f"#{section}").is_visible()
    assert visit.page.locator("#tradeoff .wide .mark .spot").count() > 16
    assert visit.page.locator("#parameters .wide .parallel .line").count() == 16
    assert visit.page.locator("#adjoint .chart").count() == 3
    assert visit.page.locator(".bars tr").count() == 0  # eight trials say nothing about importance
    assert visit.page.locator("#search .wide .chart").count() == 2
    assert visit.page.locator("#parameters .panel .chart").count() == 3
    visit.close()


def test_slider_shows_each_checkpoint(browser: Any, files: dict[str, Path]) -> None:
    visit = Visit(browser, files["run"])
    slider, tuned = visit.page.locator("#step"), visit.page.locator(".tuned img").first
    base = visit.page.locator(".base img").first.get_attribute("src")
    last = tuned.get_attribute("src")
    assert visit.page.locator("#stepname").inner_text() == "step 60"
    slider.focus()
    visit.page.keyboard.press("Home")
    assert visit.page.locator("#stepname").inner_text() == "step 10"
    assert slider.get_attribute("aria-valuetext") == "step 10"
    assert tuned.get_attribute("src") != last
    assert "step 10, sample 1" in (tuned.get_attribute("alt") or "")
    assert visit.page.locator(".base img").first.get_attribute("src") == base
    visit.page.keyboard.press("End")
    assert tuned.get_attribute("src") == last
    assert visit.page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert visit.page.evaluate("getComputedStyle(document.querySelector('.shots img')).imageRendering") == "pixelated"
    visit.close()


def test_another_run_can_be_chosen(browser: Any, files: dict[str, Path]) -> None:
    visit = Visit(browser, files["sweep"])
    before = visit.page.locator(".tuned .score").all_inner_texts()
    visit.page.locator("#reel").select_option(index=2)
    assert visit.page.locator(".tuned .score").all_inner_texts() != before
    visit.close()


def test_theme_button_goes_round(browser: Any, files: dict[str, Path]) -> None:
    visit = Visit(browser, files["run"], color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = visit.page.evaluate(ground)
    visit.page.locator("#theme").click()
    assert visit.page.evaluate(ground) != light
    assert visit.page.locator("#theme").get_attribute("aria-label") == "Color theme: dark"
    visit.page.locator("#theme").click()
    visit.page.locator("#theme").click()
    assert visit.page.evaluate(ground) == light
    visit.close()


def test_modes_and_raw_values_can_be_hidden(browser: Any, files: dict[str, Path]) -> None:
    visit = Visit(browser, files["sweep"])
    marks = visit.page.locator("#tradeoff .wide .mark.m0")
    assert marks.first.is_visible()
    visit.page.locator(".chip[data-mode=m0]").click()
    assert not marks.first.is_visible()
    assert visit.page.locator(".chip[data-mode=m0]").get_attribute("aria-pressed") == "false"
    raw = visit.page.locator("#curves .raw.m1").first
    assert raw.evaluate("(node) => getComputedStyle(node).display") == "none"  # many runs: hidden at first
    visit.page.locator("#raw").check()
    assert raw.evaluate("(node) => getComputedStyle(node).display") == "inline"
    visit.close()


def test_marks_speak_to_pointer_and_keyboard(browser: Any, files: dict[str, Path]) -> None:
    visit = Visit(browser, files["sweep"])
    tip = visit.page.locator("#tip")
    mark = visit.page.locator("#tradeoff .wide .mark[data-run]").last
    mark.hover(force=True)
    assert "reward" in tip.inner_text()
    assert visit.page.locator(".followed").count() > 1
    figure = visit.page.locator("#tradeoff .wide .chart").first
    figure.locator(".mark[tabindex='0']").focus()
    first = tip.inner_text()
    visit.page.keyboard.press("ArrowLeft")
    assert tip.inner_text() != first
    visit.page.keyboard.press("Escape")
    assert not tip.is_visible()
    visit.close()


def test_curves_are_read_back_from_the_pixels(browser: Any, files: dict[str, Path]) -> None:
    visit = Visit(browser, files["run"])
    chart = visit.page.locator("#curves .chart").first
    chart.scroll_into_view_if_needed()
    chart.hover()
    assert visit.page.locator("#tip").inner_text().startswith("step ")
    visit.close()


def test_table_sorts_both_ways(browser: Any, files: dict[str, Path]) -> None:
    visit = Visit(browser, files["sweep"])
    table = visit.page.locator("table.sortable").last
    head = table.locator("thead th").nth(2)
    values = (
        "(t) => [...t.tBodies[0].rows].map((r) => r.cells[2].dataset.sort).filter((v) => v !== undefined).map(Number)"
    )
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    found = table.evaluate(values)
    assert found == sorted(found, reverse=True)
    head.locator("button").click()
    found = table.evaluate(values)
    assert found == sorted(found)
    visit.close()


def test_setting_chooses_its_table(browser: Any, files: dict[str, Path]) -> None:
    visit = Visit(browser, files["run"])
    assert visit.page.locator(".tabled:visible").count() == 1
    visit.page.locator("#setting").select_option(index=1)
    assert "eta1" in visit.page.locator(".tabled:visible caption").inner_text()
    visit.close()


def test_reads_without_script_and_prints(browser: Any, files: dict[str, Path]) -> None:
    visit = Visit(browser, files["sweep"], java_script_enabled=False)
    assert visit.page.locator("#tradeoff .wide .chart").first.is_visible()
    assert visit.page.locator(".tuned img").count() > 0
    assert len(visit.page.pdf(format="A4")) > 10_000
    visit.close()


@pytest.mark.parametrize("way", ["pointer", "keyboard"])
def test_a_picture_can_be_enlarged_beside_its_twin(browser: Any, files: dict[str, Path], way: str) -> None:
    visit = Visit(browser, files["run"])
    picture = visit.page.locator(".tuned .shots img").first
    if way == "pointer":
        picture.click()
    else:
        picture.focus()
        visit.page.keyboard.press("Enter")
    dialog = visit.page.locator("#zoom")
    assert dialog.is_visible()
    assert dialog.locator("img").count() == 2
    assert dialog.locator("img").nth(1).get_attribute("src") == picture.get_attribute("src")
    size = picture.bounding_box()
    large = dialog.locator("img").nth(1).bounding_box()
    assert large["width"] > 2 * size["width"]
    visit.page.keyboard.press("Escape")
    assert not dialog.is_visible()
    visit.close()


def test_a_comparison_hides_a_run_with_its_band_and_enlarges_all_models_together(
    browser: Any, files: dict[str, Path]
) -> None:
    visit = Visit(browser, files["compared"])
    bands = visit.page.locator("#curves .band")
    assert bands.first.is_visible()
    visit.page.locator(".chip[data-mode=m0]").click()
    assert not visit.page.locator("#curves .band.m0").first.is_visible()
    assert visit.page.locator("#curves .band.m1").first.is_visible()
    visit.page.locator(".wall .shots img").first.click()
    shown = visit.page.locator("#zoom img")
    assert shown.count() == 3  # base and two runs
    assert len({shown.nth(n).get_attribute("alt") for n in range(3)}) == 3
    visit.page.keyboard.press("Escape")
    visit.page.locator(".sort").first.click()  # its tables can be sorted, but for the table of settings
    assert visit.page.locator(".settings .sort").count() == 0
    visit.close()
