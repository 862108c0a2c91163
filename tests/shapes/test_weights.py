import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import amsd
from amsd.shapes import pipeline_path, prompts_path
from amsd.shapes.rewards import color_accuracy, form_accuracy
from embedded.combinations import vocabulary
from embedded.quality import AT_LEAST, AT_MOST, Quality, generate


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(pipeline_path())
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_weights_are_small_and_complete() -> None:
    files = [path for path in pipeline_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    names = {path.name for path in files}
    assert {"model_index.json", "classifier.safetensors", "training.json", "samples.png"} <= names
    assert not any(path.suffix in (".bin", ".pt", ".ckpt") for path in files), "no pickle"


def test_stored_gates_are_met() -> None:
    record = json.loads((pipeline_path() / "training.json").read_text())
    quality = Quality(record["quality"]["measured"], AT_LEAST, AT_MOST)
    assert quality.failures() == []
    assert {"settings", "libraries", "log"} <= record.keys()


def test_a_missed_gate_is_named() -> None:
    good = {**AT_LEAST, **AT_MOST}
    assert Quality(good, AT_LEAST, AT_MOST).passed
    for name in good:
        assert Quality({**good, name: float("nan")}, AT_LEAST, AT_MOST).failures() == [name]


def test_every_word_is_one_token(pipeline: StableDiffusionPipeline) -> None:
    tokenizer = pipeline.tokenizer
    assert tokenizer.model_max_length == pipeline.text_encoder.config.max_position_embeddings == 16
    assert [len(tokenizer.tokenize(word)) for word in vocabulary()] == [1] * len(vocabulary())
    assert len(set(tokenizer("a small red circle").input_ids)) == 6


def test_scheduler_ends_without_noise_on_the_trailing_grid(pipeline: StableDiffusionPipeline) -> None:
    scheduler = pipeline.scheduler
    assert scheduler.final_alpha_cumprod == 1
    assert scheduler.config.timestep_spacing == "trailing"
    assert scheduler.config.prediction_type == "epsilon"
    assert not scheduler.config.clip_sample
    assert float(scheduler.alphas_cumprod[999]) == pytest.approx(0.0047, abs=1e-4)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[[0, -1]].tolist() == [999, 19]


def test_plain_diffusers_draws_the_captions(pipeline: StableDiffusionPipeline) -> None:
    prompts = prompts_path("evaluation").read_text().splitlines()
    images = generate(pipeline, prompts, seed=11, steps=20)
    assert images.shape == (16, 3, 32, 32)
    assert float(color_accuracy()(images, prompts).mean()) >= 0.85
    assert float(form_accuracy()(images, prompts).mean()) >= 0.85
    background = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].median()
    assert float(background) == pytest.approx(0.5, abs=0.03)


def test_half_precision_loads(pipeline: StableDiffusionPipeline) -> None:
    half = StableDiffusionPipeline.from_pretrained(pipeline_path(), dtype=torch.float16)
    assert {half.unet.dtype, half.vae.dtype, half.text_encoder.dtype} == {torch.float16}
    for name, value in half.unet.state_dict().items():
        assert torch.equal(value.float(), pipeline.unet.state_dict()[name]), name


def test_no_shipped_file_names_a_place_of_the_machine_it_was_made_on() -> None:
    files = [*Path(amsd.__file__).parent.joinpath("shapes").rglob("*.json")]
    assert files
    assert [file for file in files if "_name_or_path" in file.read_text(encoding="utf-8")] == []
