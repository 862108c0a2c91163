"""`amsd demo`: a page in the browser with the base model and the fine-tuned one on the same noise (extra `demo`)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amsd.errors import UsageError
from amsd.experiment.sample import SampleRequest, pictures
from amsd.experiment.setup import build_accelerator, load_policy
from amsd.prompts.cut import cut_prompts
from amsd.recipe import Recipe

_HEAD = "Both models draw the same prompt from the same noise. Image j starts from seed + j, as in `amsd sample`."
_STYLE = "#base .grid-wrap, #tuned .grid-wrap { min-height: 0; max-height: none; height: auto; }"
"""A gallery is as high as its pictures; Gradio's own least height leaves space below small ones."""


class Comparison:
    """A checkpoint and its base model, ready to draw."""

    def __init__(self, recipe: Recipe, checkpoint: Path) -> None:
        self.recipe = recipe
        self._policy = load_policy(recipe, build_accelerator(recipe).device, checkpoint)
        self._scheduler = self._policy.family.exported_sampler(recipe.schedule)
        self._lock = threading.Lock()

    def remarks(self, prompt: str) -> list[str]:
        """What the models do not read of a prompt, as sentences."""
        return list(cut_prompts(self._policy.family, self.recipe, {"given": [prompt]}))

    def draw(self, request: SampleRequest) -> tuple[list[Any], list[Any]]:
        """Pictures of the base model and of the fine-tuned one, pair by pair from one noise.

        Raises:
            UsageError: there is no prompt.
            RunError: a model draws what is not finite.
        """
        prompt = request.prompts[0].strip()
        if not prompt:
            raise UsageError("Write a prompt first.")
        drawn = []
        with self._lock:  # the pipeline holds one set of weights at a time
            for base in (True, False):
                with self._policy.sampling(base=base) as pipeline:
                    pipeline.scheduler = self._scheduler
                    drawn.append(pictures(self._policy.family, self.recipe, prompt, request))
        return drawn[0], drawn[1]


def build_page(comparison: Comparison, title: str, prompt: str) -> Any:
    """The Gradio application; `prompt` stands in the box at first.

    Raises:
        UsageError: Gradio is not installed.
    """
    gradio = _gradio()
    recipe = comparison.recipe

    def draw(text: str, count: float, seed: float | None, steps: float, scale: float, eta: float) -> tuple[Any, Any]:
        request = SampleRequest((text,), int(count), int(seed or 0), float(eta), float(scale), int(steps))
        try:
            for remark in comparison.remarks(text):
                gradio.Warning(remark)
            return comparison.draw(request)
        except Exception as error:  # shown on the page; the server goes on
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {title}\n\n{_HEAD}")
        with gradio.Row(equal_height=True):
            text = gradio.Textbox(prompt, label="Prompt", scale=4, elem_id="prompt")
            button = gradio.Button("Draw", variant="primary", scale=1, elem_id="draw")
        with gradio.Row():
            boxes = [
                gradio.Gallery(label=label, columns=2, format="png", object_fit="contain", height="auto", elem_id=name)
                for label, name in (("Base model", "base"), ("Fine-tuned", "tuned"))
            ]
        with gradio.Accordion("Settings", open=False):
            settings = [
                gradio.Slider(1, 8, 2, step=1, label="Images"),
                gradio.Number(0, label="Seed", precision=0, minimum=0),
                gradio.Slider(1, 100, recipe.schedule.num_inference_steps, step=1, label="Steps"),
                gradio.Slider(1, 20, max(1.0, recipe.guidance.guidance_scale), step=0.5, label="Guidance scale"),
                gradio.Slider(0, 1, 0, step=0.1, label="eta: noise of the sampler"),
            ]
        for event in (button.click, text.submit):
            event(draw, [text, *settings], boxes, concurrency_limit=1)
    return page


def serve(
    recipe: Recipe, checkpoint: Path, port: int, host: str, prompt: str | None, say: Callable[[str], None]
) -> None:
    """Serve the page until it is interrupted; `say` hears its address."""
    from amsd.prompts import load_prompts

    _gradio()  # before the model is loaded
    first = prompt or load_prompts(recipe.prompts.evaluation, "evaluation", recipe.prompts.column).texts[0]
    comparison = Comparison(recipe, checkpoint)
    title = f"{recipe.model.pretrained.rpartition('/')[2]}: base and {checkpoint.name}"
    page = build_page(comparison, title, first)
    quiet = {"share": False, "ssr_mode": False, "quiet": True, "prevent_thread_lock": True}
    _, address, _ = page.launch(server_name=host, server_port=port, **quiet, **look())
    say(f"The page is at {address} until you press Ctrl-C.")
    try:
        threading.Event().wait()  # Gradio's own wait takes every signal for a good end
    finally:
        page.close(verbose=False)


def look() -> dict[str, Any]:
    """Theme, style and foot of the page. Fonts are the reader's own: the page asks no other server for anything."""
    theme = _gradio().themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return {"theme": theme, "css": _STYLE, "footer_links": []}


def _gradio() -> Any:
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise UsageError(
            f"`amsd demo` needs Gradio (missing: {error.name}). Install it with `uv pip install 'amsd[demo]'`, "
            "without -c constraints.txt: Gradio wants an older Pillow."
        ) from error
    return gradio
