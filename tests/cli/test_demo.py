"""`amsd demo`: both models on one noise, as a function, as a command, and as a page in a browser."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.errors import UsageError
from amsd.experiment.demo import Comparison, build_page, look
from amsd.experiment.sample import SampleRequest, sample
from amsd.recipe import load_recipe
from amsd.run_directory import RunDirectory
from tests.cli.commands import write_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    changes = ["training.steps=2", "optimizer.learning_rate=0.02", "evaluation.every=0"]
    arguments = [word for change in changes for word in ("--set", change)]
    outcome = CliRunner().invoke(app, ["train", str(write_recipe(folder)), "--output", str(folder / "run"), *arguments])
    assert outcome.exit_code == 0, outcome.output
    return folder / "run"


@pytest.fixture(scope="module")
def comparison(run: Path) -> Comparison:
    return Comparison(load_recipe(run / "recipe.toml"), RunDirectory(run).checkpoint(2))


def pixels(image: Any) -> np.ndarray[Any, Any]:
    return np.asarray(image.convert("RGB")).astype(int)


def test_the_pairs_are_those_of_amsd_sample(comparison: Comparison, run: Path, tmp_path: Path) -> None:
    request = SampleRequest(("a cat",), count=2, seed=5, eta=0.0, num_inference_steps=3)
    for drawn, checkpoint in zip(comparison.draw(request), (None, RunDirectory(run).checkpoint(2)), strict=True):
        files = sample(comparison.recipe, checkpoint, request, tmp_path / str(checkpoint is None))
        for image, file in zip(drawn, files, strict=True):
            assert np.array_equal(pixels(image), pixels(Image.open(file)))
    base, tuned = comparison.draw(request)
    assert not np.array_equal(pixels(base[0]), pixels(tuned[0]))


def test_size_and_negative_prompt_are_the_recipe_s(run: Path, tmp_path: Path) -> None:
    guided = ["model.size=[16,24]", "guidance.guidance_scale=3"]
    request = SampleRequest(("a cat",), count=1, seed=5, eta=0.0, num_inference_steps=3)
    drawn = []
    for negative in ("", "a red circle"):
        recipe = load_recipe(run / "recipe.toml", [*guided, f"guidance.negative_prompt={negative}"])
        base, _ = Comparison(recipe, RunDirectory(run).checkpoint(2)).draw(request)
        (file,) = sample(recipe, None, request, tmp_path / (negative or "none"))
        assert base[0].size == (24, 16)
        assert np.array_equal(pixels(base[0]), pixels(Image.open(file)))
        drawn.append(pixels(base[0]))
    assert not np.array_equal(*drawn)


def test_an_empty_prompt_and_the_base_are_refused(comparison: Comparison) -> None:
    with pytest.raises(UsageError, match="Write a prompt"):
        comparison.draw(SampleRequest((" ",)))
    assert isinstance(CliRunner().invoke(app, ["demo", "base"]).exception, UsageError)


def test_a_prompt_that_is_cut_is_said(comparison: Comparison) -> None:
    assert comparison.remarks("a cat") == []
    (remark,) = comparison.remarks("a red cat " * 20)
    assert remark.startswith("1 given prompt is longer than the 16 tokens")
    assert "model.prompt_windows = " in remark


def test_without_gradio_one_line_says_how_to_get_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    error = CliRunner().invoke(app, ["demo", str(run)]).exception
    assert isinstance(error, UsageError)
    assert "uv pip install 'amsd[demo]'" in str(error)


@pytest.mark.browser
def test_the_page_draws_pairs_in_a_browser_and_asks_no_other_server(comparison: Comparison) -> None:
    pytest.importorskip("gradio")
    sync_api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = build_page(comparison, "model: base and step-000002", "a cat")
    page.launch(
        server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False,
        **look(),
    )  # fmt: skip
    asked: list[str] = []
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
            for width in (1280, 375):
                view = browser.new_page(viewport={"width": width, "height": 900})
                view.on("request", lambda request: asked.append(request.url))
                view.goto(f"http://127.0.0.1:{port}")
                view.locator("#draw").click()
                for name in ("base", "tuned"):
                    view.locator(f"#{name} img").first.wait_for(timeout=60_000)
                    assert view.locator(f"#{name} img").count() >= 2
                    box, picture = (view.locator(f"#{name}{inner}").first.bounding_box() for inner in ("", " img"))
                    assert box["height"] < 1.3 * picture["height"]  # no empty space below
                assert view.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
            browser.close()
    finally:
        page.close()
    assert [url for url in asked if not url.startswith((f"http://127.0.0.1:{port}", "data:", "blob:"))] == []
