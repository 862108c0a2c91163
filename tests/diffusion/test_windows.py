"""Prompts beyond one window of a text encoder: cut with a notice, or read in windows where the key says so."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from amsd.diffusion.agreement import require_agreement
from amsd.diffusion.families import family_for
from amsd.diffusion.windows import tokens_read, windows_needed
from amsd.errors import UsageError
from amsd.prompts.cut import cut_prompts
from amsd.recipe import Model, Recipe, from_dict
from tests import pipelines

SHORT = "a red circle"
LONG = "a red circle and " * 12
UNETS = {"sd": pipelines.stable_diffusion, "sdxl": pipelines.stable_diffusion_xl}
DRAWN = {**UNETS, "sd3": partial(pipelines.stable_diffusion_3, t5=False)}


def recipe(**sections: Any) -> Recipe:
    return from_dict({"reward": [{"name": "brightness"}], **sections}, source="test")


@pytest.mark.parametrize("name", UNETS)
def test_every_window_is_encoded_as_a_prompt_of_its_own(name: str) -> None:
    pipeline = UNETS[name]()
    one, three = (family_for(pipeline, Model(prompt_windows=count)) for count in (1, 3))
    length = pipeline.tokenizer.model_max_length
    first, rest = " ".join(["a"] * (length - 2)), "red circle"
    assert len(pipeline.tokenizer(first).input_ids) == length
    texts = [SHORT, f"{first} {rest}"]
    found = three.encode(texts)
    assert found.hidden_states.shape[:2] == (2, 3 * length)
    # The first window of any prompt is what the pipeline itself reads of it.
    plain = one.encode(texts)
    assert torch.equal(found.hidden_states[:, :length], plain.hidden_states)
    assert all(torch.equal(found.added[key], value) for key, value in plain.added.items())
    # The second holds the next tokens; of a short prompt it is that of the empty one.
    second = found.hidden_states[:, length : 2 * length]
    assert torch.allclose(second, one.encode(["", rest]).hidden_states, atol=1e-6)
    assert type(pipeline.tokenizer).__name__ == "CLIPTokenizer"


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_drawn_from_all_windows(name: str) -> None:
    def draw(windows: int, prompt: str) -> Any:
        family = family_for(DRAWN[name](), Model(prompt_windows=windows, t5=name != "sd3"))
        require_agreement(family)
        return family.draw(
            family.drawing_arguments(prompt, "a dog", 2), [torch.Generator().manual_seed(s) for s in (0, 1)],
            eta=0.0, guidance_scale=3.0, num_inference_steps=2, output_type="latent",
        )  # fmt: skip

    assert torch.equal(draw(1, LONG), draw(1, f"{LONG} and a big dog"))  # cut
    assert not torch.allclose(draw(8, LONG), draw(8, f"{LONG} and a big dog"), atol=1e-5)


def test_what_is_cut_is_said_with_the_key_that_reads_all() -> None:
    pipeline = pipelines.stable_diffusion()
    length = pipeline.tokenizer.model_max_length
    tokens = len(pipeline.tokenizer(LONG).input_ids)
    given = recipe(guidance={"negative_prompt": LONG})
    found = list(cut_prompts(family_for(pipeline), given, {"training": [SHORT, LONG, LONG]}))
    needed = windows_needed(tokens, length)
    assert found == [
        f"2 training prompts are longer than the {length} tokens that the text encoder reads; the rest is cut. "
        f"model.prompt_windows = {needed} reads all.",
        f"1 negative prompt is longer than the {length} tokens that the text encoder reads; the rest is cut. "
        f"model.prompt_windows = {needed} reads all.",
    ]
    enough = family_for(pipeline, Model(prompt_windows=needed))
    assert not list(cut_prompts(enough, given, {"training": [LONG]}))
    assert tokens <= tokens_read(length, needed)
    assert tokens > tokens_read(length, needed - 1)
    xl = family_for(pipelines.stable_diffusion_xl())
    assert len(list(cut_prompts(xl, recipe(), {"training": [LONG]}))) == 1  # two encoders, one limit


def test_t5_has_a_limit_of_its_own() -> None:
    pipeline = pipelines.stable_diffusion_3()
    family = family_for(pipeline, Model(max_sequence_length=32))
    needed = len(pipeline.tokenizer_3(LONG).input_ids)
    clip, t5 = cut_prompts(family, recipe(), {"evaluation": [LONG]})
    assert "16 tokens that CLIP reads" in clip
    assert t5.endswith(f"32 tokens that T5 reads; the rest is cut. model.max_sequence_length = {needed} reads all.")
    assert clip.endswith("the rest is cut. model.prompt_windows = 6 reads all.")
    (rest,) = cut_prompts(
        family_for(pipeline, Model(prompt_windows=6, max_sequence_length=32)), recipe(), {"evaluation": [LONG]}
    )
    assert "T5 reads" in rest
    with pytest.raises(UsageError, match="prompt_windows = 2 has no effect: Flux "):
        family_for(pipelines.flux(), Model(prompt_windows=2))


@pytest.mark.parametrize("tokens", [0, 32])
def test_windows_are_those_of_clip_and_t5_reads_the_prompt_once(tokens: int) -> None:
    pipeline = pipelines.stable_diffusion_3(t5=tokens > 0)
    one, three = (family_for(pipeline, Model(prompt_windows=n, max_sequence_length=tokens)) for n in (1, 3))
    length = pipeline.tokenizer.model_max_length
    text = " ".join(["a"] * (length - 2)) + " red circle"
    (plain, rest), found = (one.encode([each]) for each in (text, "red circle")), three.encode([text])
    assert found.hidden_states.shape[1] == 3 * length + tokens
    assert torch.equal(found.hidden_states[:, :length], plain.hidden_states[:, :length])
    assert torch.allclose(found.hidden_states[:, length : 2 * length], rest.hidden_states[:, :length], atol=1e-6)
    assert torch.equal(found.hidden_states[:, 3 * length :], plain.hidden_states[:, length:])
    assert torch.equal(found.added["pooled_projections"], plain.added["pooled_projections"])
