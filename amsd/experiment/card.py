"""The README.md of an export: what the model is, how it was made, what it scores and how to load it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from amsd.diffusion.families import family_class
from amsd.diffusion.lora_file import LORA_FILE
from amsd.diffusion.policy import DTYPES
from amsd.evaluation.result import EvaluationResult, saved_results
from amsd.evaluation.statistics import measured
from amsd.places import in_text, in_value, published_toml
from amsd.reading import read_json
from amsd.recipe import Recipe, identity
from amsd.rewards.table import license_of
from amsd.run_directory import RunDirectory

CARD = "README.md"
GRID = "samples.png"
_GALLERY = 6
"""Pictures of the widget gallery that the hub shows at the top of a model's page."""

#: The hub's names of base models' licenses, by the beginning of their hub id.
_BASE_LICENSES = {
    "embedded:": "mit", "stable-diffusion-v1-5/": "creativeml-openrail-m",
    "CompVis/stable-diffusion": "creativeml-openrail-m", "stabilityai/stable-diffusion-2": "openrail++",
    "stabilityai/stable-diffusion-xl": "openrail++", "black-forest-labs/FLUX.1-schnell": "apache-2.0",
}  # fmt: skip


def write_card(folder: Path, recipe: Recipe, checkpoint: Path, departures: Sequence[str] = ()) -> None:
    """Write `README.md` into an export's folder, and the checkpoint's samples that it shows.

    `departures` are sentences: what the export samples otherwise than fine-tuning did.
    """
    grid = _grid(recipe, checkpoint)
    if grid is not None:
        shutil.copyfile(grid, folder / GRID)
    gallery = list(_gallery(recipe, checkpoint, folder))
    text = "\n".join(_lines(folder, recipe, checkpoint, grid is not None, departures))
    head = metadata(recipe, checkpoint, gallery)
    (folder / CARD).write_text(f"---\n{head}\n---\n\n{text}", encoding="utf-8")


def metadata(recipe: Recipe, checkpoint: Path, gallery: Sequence[dict[str, Any]] = ()) -> str:
    """The YAML at the head of the card, in the words of the hub.

    Source: the hub's model card specification, through `huggingface_hub.ModelCardData`.
    """
    from huggingface_hub import ModelCardData

    base, lora = recipe.model.pretrained, recipe.model.parameterization == "lora"
    license_ = next((name for start, name in _BASE_LICENSES.items() if base.startswith(start)), None)
    named: dict[str, Any] = {} if license_ else {"license_name": "license-of-the-base-model"}
    if _on_hub(recipe):
        named |= {} if license_ else {"license_link": f"https://huggingface.co/{base}"}
        named["base_model_relation"] = "adapter" if lora else "finetune"
    if gallery:
        named["widget"] = list(gallery)
    tags = ["text-to-image", "diffusers", "adjoint-matching", "reward-fine-tuning", "amsd", *(["lora"] if lora else [])]
    data = ModelCardData(
        base_model=base if _on_hub(recipe) else None,
        eval_results=list(_eval_results(recipe, checkpoint)) or None,
        library_name="diffusers",
        license=license_ or "other",
        model_name=title(recipe),
        pipeline_tag="text-to-image",
        tags=tags,
        **named,
    )
    return str(data.to_yaml()).rstrip()


def title(recipe: Recipe) -> str:
    """The model's name: the base model and what it was fine-tuned on."""
    base = recipe.model.pretrained.removeprefix("embedded:")
    return f"{Path(base).stem or base} fine-tuned on {' + '.join(_short(term.name) for term in recipe.reward)}"


def _lines(folder: Path, recipe: Recipe, checkpoint: Path, pictures: bool, departures: Sequence[str]) -> Iterator[str]:
    yield from (f"# {title(recipe)}", "")
    yield f"Fine-tuned with amsd, method `{recipe.method.name}` ({checkpoint.name})."
    if recipe.method.tilt is not None:
        yield (f"Samples tend to p(x) exp(λ r(x)): p is the base model, r the reward and λ = {recipe.method.tilt:g}.")
    if pictures:
        yield from ("", f"![Samples: a prompt per row]({GRID})")
    yield from _loading(folder, recipe)
    for sentence in departures:
        yield from ("", in_text(sentence))
    yield from _metrics(recipe, checkpoint)
    yield from ("", "## Licenses", "")
    base = in_value(recipe.model.pretrained)
    yield f"- Base model: `{base}`. Its license, and its restrictions of use, hold for this model."
    for term in recipe.reward:
        yield f"- Reward `{_short(term.name)}`: {_license(term.name)}."
    for name in recipe.evaluation.metrics:
        if name not in {term.name for term in recipe.reward}:
            yield f"- Metric `{_short(name)}`: {_license(name)}."
    yield from (
        "",
        "## Recipe",
        "",
        f"Identity {identity(recipe)}.",
        "",
        "```toml",
        published_toml(recipe).rstrip(),
        "```",
        "",
    )


def _loading(folder: Path, recipe: Recipe) -> Iterator[str]:
    """How to load what lies in the folder: a pipeline with or without a LoRA file, or a LoRA file alone."""
    index = folder / "model_index.json"
    pipeline = index.is_file()
    family = family_class(str(read_json(index, "the export")["_class_name"]) if pipeline else "StableDiffusionPipeline")
    absent = "".join(f", {part}=None" for part in family.optional_parts if pipeline and not (folder / part).is_dir())
    guidance = recipe.guidance
    negative = {} if guidance.guidance_scale == 1 else {"negative_prompt": guidance.negative_prompt}
    arguments = family.documented_call(recipe.model, guidance.guidance_scale)
    arguments |= negative if guidance.negative_prompt else {}
    named = ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value!r}" for key, value in arguments.items()
    )
    steps = recipe.schedule.num_inference_steps
    call = f'image = pipeline("a prompt", num_inference_steps={steps}, {named}).images[0]'
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    alone = bool(files) and not pipeline
    dtype = DTYPES[recipe.model.precision] if alone or recipe.model.precision != "fp32" else None
    yield from ("", "## How to load", "", "```python", *(["import torch"] if dtype else []))
    yield from ("from diffusers import DiffusionPipeline", "")
    source = in_value(recipe.model.pretrained) if alone else "THIS_FOLDER_OR_REPOSITORY"
    options = absent + (f", torch_dtype={dtype}" if dtype else "")
    yield f'pipeline = DiffusionPipeline.from_pretrained("{source}"{options})'
    if alone:
        yield f'pipeline.load_lora_weights("THIS_FOLDER_OR_REPOSITORY", weight_name="{files[0]}")'
    yield from (call, "```", "")
    if family.takes_eta:
        yield f"Pass `eta={min(recipe.schedule.eta, 1.0):g}` as well for the sampler that fine-tuning used."
    if pipeline and recipe.model.parameterization == "lora":
        yield f"`{LORA_FILE}` is the same change as a LoRA file for `load_lora_weights`."
    elif files and not pipeline:
        yield f"`{files[0]}` also goes into the LoRA folder of ComfyUI, A1111 and InvokeAI."


def _license(name: str) -> str:
    """What is known of a scorer's license."""
    if name.startswith("python:"):
        own = in_value(name).partition(":")[2]
        return f"the author's own code (`{own}`), whose license the author states"
    return license_of(name) or "its publisher states its license"


def _short(name: str) -> str:
    """A scorer's name as a reader knows it: of an own function its name alone."""
    return name.rpartition(":")[2] if name.startswith("python:") else name


def _on_hub(recipe: Recipe) -> bool:
    base = recipe.model.pretrained
    local = base.startswith("embedded:") or recipe.model.is_single_file or Path(base).expanduser().exists()
    return base.count("/") == 1 and not local


def _eval_results(recipe: Recipe, checkpoint: Path) -> Iterator[Any]:
    """One entry of the model index for each metric of each result, with its error."""
    from huggingface_hub import EvalResult

    for result in _results(recipe, checkpoint):
        samples = result.settings["samples_per_prompt"]
        for name, metric in result.metrics.items():
            details: dict[str, Any] = {"standard_error": metric.standard_error}
            if metric.paired is not None:
                details["difference_to_base"] = metric.paired.difference
                details["difference_standard_error"] = metric.paired.standard_error
                details["p_value"] = metric.paired.p_value
            yield EvalResult(
                task_type="text-to-image",
                task_name="Text-to-image generation",
                dataset_type="prompts",
                dataset_name=f"{len(result.prompts)} prompts x {samples} samples, {result.name}",
                dataset_config=result.stem,
                metric_type=_short(name),
                metric_name=_short(name),
                metric_value=metric.mean,
                metric_args={key: value for key, value in details.items() if value is not None},
            )


def _gallery(recipe: Recipe, checkpoint: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Copy the first sample of the first prompts into `images/`; yields the widget's entries."""
    for result in _results(recipe, checkpoint):
        for index, prompt in enumerate(result.prompts[:_GALLERY]):
            picture = checkpoint / "samples" / result.stem / f"p{index:03d}-s0.png"
            if picture.is_file():
                (folder / "images").mkdir(exist_ok=True)
                shutil.copyfile(picture, folder / "images" / picture.name)
                yield {"text": prompt, "output": {"url": f"images/{picture.name}"}}
        if (folder / "images").is_dir():
            return


def _metrics(recipe: Recipe, checkpoint: Path) -> Iterator[str]:
    for result in _results(recipe, checkpoint):
        yield from ("", f"## Metrics under {result.name}", "")
        prompts, samples, seed = len(result.prompts), result.settings["samples_per_prompt"], result.settings.get("seed")
        yield f"{prompts} prompts x {samples} samples, seed {seed}; mean ± standard error over prompts."
        yield from ("", "| metric | mean | difference to the base model | p |", "|---|---|---|---|")
        for name, metric in result.metrics.items():
            paired, shown = metric.paired, in_value(name)
            if paired is None:
                yield f"| {shown} | {measured(metric.mean, metric.standard_error)} | | |"
                continue
            p = "" if paired.p_value is None else f"{paired.p_value:.2g}"
            difference = measured(paired.difference, paired.standard_error, "+")
            yield f"| {shown} | {measured(metric.mean, metric.standard_error)} | {difference} | {p} |"


def _results(recipe: Recipe, checkpoint: Path) -> list[EvaluationResult]:
    """The checkpoint's results; those under the recipe's settings first, in its order."""
    order = [setting.name for setting in recipe.evaluation_settings]
    results = saved_results(checkpoint / "evaluation")
    return sorted(results, key=lambda result: order.index(result.name) if result.name in order else len(order))


def _grid(recipe: Recipe, checkpoint: Path) -> Path | None:
    """The checkpoint's own samples; else the run's comparison, which shows its newest checkpoint."""
    for result in _results(recipe, checkpoint):
        grid = checkpoint / "samples" / result.stem / "grid.png"
        if grid.is_file():
            return grid
    run = RunDirectory(checkpoint.parent.parent)
    comparison = run.path / "comparison.png"
    return comparison if run.pointer("latest") == checkpoint and comparison.is_file() else None
