"""The negative prompt takes the unconditional place in training, evaluation and sampling, as in diffusers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from amsd.diffusion.families import family_class, family_for
from amsd.errors import UsageError
from amsd.experiment.sample import SampleRequest, pictures
from amsd.recipe import Model, Recipe, from_dict, identity
from amsd.recipe.rules import warnings
from amsd.training.problem import ControlProblem
from tests import pipelines

BLURRY = "a blurry dog"
FAMILIES: dict[str, tuple[Any, Model]] = {
    "sd": (pipelines.stable_diffusion, Model()),
    "sdxl": (pipelines.stable_diffusion_xl, Model()),
    "sd3": (pipelines.stable_diffusion_3, Model(max_sequence_length=16)),
    "flux": (pipelines.flux, Model(size=(16, 16), max_sequence_length=16)),
}


def recipe(**guidance: Any) -> Recipe:
    return from_dict({"reward": [{"name": "brightness"}], "guidance": guidance}, source="test")


@pytest.mark.parametrize("name", FAMILIES)
def test_encoded_or_as_text_it_is_what_the_pipeline_draws_with(name: str) -> None:
    build, model = FAMILIES[name]
    family = family_for(build(), model)

    def draw(prompt: dict[str, Any]) -> Any:
        generator = [torch.Generator().manual_seed(3)]
        return family.draw(prompt, generator, eta=0.0, guidance_scale=4.0, num_inference_steps=3, output_type="latent")

    encoded = draw(family.prompt_arguments(family.encode(["a cat"]), family.encode_negative(BLURRY, 1)))
    text = draw({"prompt": "a cat", "negative_prompt": BLURRY})
    assert torch.allclose(encoded, text, atol=1e-5)
    plain = draw(family.prompt_arguments(family.encode(["a cat"]), family.encode_negative("", 1)))
    assert torch.allclose(plain, draw({"prompt": "a cat"}), atol=1e-5)
    assert not torch.allclose(encoded, plain, atol=1e-4)


def test_one_run_has_one_identity_with_it_and_without_guidance() -> None:
    assert identity(recipe(negative_prompt=BLURRY)) != identity(recipe())
    assert identity(recipe(negative_prompt="")) == identity(recipe())
    unguided = recipe(guidance_scale=1.0, negative_prompt=BLURRY)
    assert identity(unguided) == identity(recipe(guidance_scale=1.0))
    assert any("no effect without guidance" in str(notice) for notice in warnings(unguided))
    assert not warnings(recipe(negative_prompt=BLURRY))


def test_embedded_guidance_has_no_place_for_it() -> None:
    flux = family_class("FluxPipeline")
    flux.check_recipe(recipe(guidance_scale=4.0, negative_prompt=BLURRY))
    with pytest.raises(UsageError, match="Set guidance"):
        flux.check_recipe(recipe(guidance_scale=1.0, negative_prompt=BLURRY))
    flux.check_recipe(recipe(guidance_scale=1.0))


def test_a_sample_without_guidance_leaves_out_that_of_the_run() -> None:
    """Only one that was typed is refused there."""
    model = Model(size=(16, 16), max_sequence_length=4)
    family = family_for(pipelines.flux(), model)
    chosen = recipe(guidance_scale=3.0, negative_prompt=BLURRY)
    family.pipeline.scheduler = family.exported_sampler(chosen.schedule)
    request = SampleRequest(("a cat",), count=1, guidance_scale=1.0, num_inference_steps=2)
    assert len(pictures(family, chosen, "a cat", request)) == 1
    with pytest.raises(UsageError, match="has no effect"):
        pictures(family, chosen, "a cat", replace(request, negative_prompt="worse"))


@pytest.mark.parametrize("key", ["embedded_guidance", "max_sequence_length"])
def test_a_key_that_a_model_has_no_input_for_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match=f"model.{key} = 2.* has no effect: StableDiffusion has"):
        family_for(pipelines.stable_diffusion(), Model.model_validate({key: 2}))


@pytest.mark.parametrize(("scale", "text"), [(3.0, BLURRY), (1.0, "")])
def test_training_leads_away_from_it_where_it_is_guided(scale: float, text: str) -> None:
    """Both in guidance and in the place of dropped prompts."""
    family = family_for(pipelines.stable_diffusion_xl())
    chosen = recipe(guidance_scale=scale, negative_prompt=BLURRY)
    problem = ControlProblem(chosen, family, Any, Any, Any, torch.device("cpu"))  # type: ignore[arg-type]
    given = problem.encode(["a cat", "a dog"])
    expected = family.encode_negative(text, 2)
    assert torch.equal(given.negative.hidden_states, expected.hidden_states)
    assert torch.equal(given.negative.added["text_embeds"], expected.added["text_embeds"])
    dropped = given.dropped(torch.tensor([False, True])).prompt
    assert torch.equal(dropped.hidden_states[0], given.prompt.hidden_states[0])
    assert torch.equal(dropped.hidden_states[1], expected.hidden_states[1])
