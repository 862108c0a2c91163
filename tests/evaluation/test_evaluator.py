"""What is computed, what is remembered, and what the numbers mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amsd.errors import RunError, UsageError
from amsd.evaluation import evaluator as module
from amsd.evaluation.distance import coordinate_scale, fid, kid
from amsd.evaluation.diversity import embedding_variance
from amsd.evaluation.evaluator import Evaluator
from amsd.evaluation.metrics import dequantize
from amsd.evaluation.result import EvaluationResult
from amsd.evaluation.statistics import compare
from amsd.rewards.simple import Brightness, Colorfulness
from amsd.training.events import Notice
from tests.evaluation.scenes import PROMPTS, CountingReward, PixelsEmbedder, recipe
from tests.pipelines import ddim, flux, stable_diffusion, stable_diffusion_xl

TOTAL = 9
"""Images of the ordinary recipe: 3 prompts x 3 samples."""


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return stable_diffusion(0)


@pytest.fixture(scope="module")
def tuned() -> Any:
    return stable_diffusion(1)


def values_of(result: Any, name: str = "brightness") -> tuple[float, ...]:
    values: tuple[float, ...] = result.metrics[name].per_prompt
    return values


def test_numbers_are_those_of_the_pictures(pipeline: Any, tmp_path: Path) -> None:
    """With every picture kept, each metric can be computed again from what is shown."""
    evaluator = Evaluator(
        recipe({"images": 3}), PROMPTS, [Brightness(), Colorfulness()], [PixelsEmbedder()], cache=tmp_path
    )
    (result,) = evaluator.evaluate(pipeline, "w")
    assert result.pictures is not None
    assert result.pictures.shape == (3, 3, 3, 16, 16)
    images = dequantize(result.pictures)
    for reward in (Brightness(), Colorfulness()):
        expected = [reward(images[p], ["", "", ""]).double().mean().item() for p in range(3)]
        assert values_of(result, reward.name) == pytest.approx(expected, abs=1e-7)
        assert result.metrics[reward.name].mean == pytest.approx(sum(expected) / 3, abs=1e-7)
    variance = embedding_variance(images.flatten(2))
    assert values_of(result, "diversity/pixels") == pytest.approx(variance.tolist(), abs=1e-7)
    assert list(result.metrics) == ["brightness", "colorfulness", "diversity/pixels"]
    assert result.metrics["brightness"].paired is None


def test_one_result_per_setting_with_its_settings(pipeline: Any, tmp_path: Path) -> None:
    chosen = recipe({"eta": [0.0, 1.0], "scheduler": ["fine-tuning", "default"], "guidance_scale": [1.0, 3.0]})
    results = Evaluator(chosen, PROMPTS, [Brightness()], cache=tmp_path).evaluate(pipeline, "w")
    assert [result.name for result in results] == [setting.name for setting in chosen.evaluation_settings]
    assert len({result.identity for result in results}) == 8
    assert len({values_of(result) for result in results}) == 8
    settings = results[0].settings
    assert settings["weights"] == "w"
    assert settings["sampler"]["class"] == "SOCDDIMScheduler"
    json.dumps(results[0].to_json(), allow_nan=False)


def test_paired_difference_to_the_base_model(pipeline: Any, tuned: Any, tmp_path: Path) -> None:
    evaluator = Evaluator(recipe(), PROMPTS, [Brightness()], [PixelsEmbedder()], cache=tmp_path)
    base = evaluator.evaluate(pipeline, "base")
    (result,) = evaluator.evaluate(tuned, "tuned", base)
    for name in ("brightness", "diversity/pixels"):
        assert result.metrics[name].paired == compare(values_of(result, name), values_of(base[0], name))
    (same,) = evaluator.evaluate(pipeline, "another name of the same weights", base)
    paired = same.metrics["brightness"].paired
    assert paired is not None
    assert (paired.difference, paired.p_value) == (0.0, 1.0)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"samples_per_prompt": 2}])
def test_a_base_under_other_conditions_is_refused(pipeline: Any, tmp_path: Path, changed: dict[str, Any]) -> None:
    base = Evaluator(recipe(changed), PROMPTS, [Brightness()], cache=tmp_path).evaluate(pipeline, "base")
    with pytest.raises(UsageError, match="other conditions"):
        Evaluator(recipe(), PROMPTS, [Brightness()], cache=tmp_path).evaluate(pipeline, "tuned", base)


def test_tiling_is_a_condition_and_is_named_only_where_it_is_on(pipeline: Any, tmp_path: Path) -> None:
    tiling = stable_diffusion(0)
    tiling.vae.enable_tiling()
    tiling.vae.tile_latent_min_size, tiling.vae.tile_sample_min_size = 4, 8
    evaluator = Evaluator(recipe(), PROMPTS, [Brightness()], cache=tmp_path)
    (whole,), (tiled,) = evaluator.evaluate(pipeline, "w"), evaluator.evaluate(tiling, "w")
    assert "vae_tiling" not in whole.settings
    assert tiled.settings == {**whole.settings, "vae_tiling": True}
    assert values_of(tiled) != values_of(whole), "the cache took one for the other"
    assert whole.key != tiled.key
    with pytest.raises(UsageError, match="other conditions"):
        evaluator.evaluate(tiling, "tuned", [whole])


def test_a_base_scored_by_another_version_is_refused(pipeline: Any, tmp_path: Path) -> None:
    base = Evaluator(recipe(), PROMPTS, [CountingReward(version="1")], cache=tmp_path).evaluate(pipeline, "base")
    with pytest.raises(UsageError, match="no result of 'brightness' in version '2'"):
        Evaluator(recipe(), PROMPTS, [CountingReward(version="2")], cache=tmp_path).evaluate(pipeline, "tuned", base)


def test_the_batch_size_changes_nothing_of_account(pipeline: Any, tmp_path: Path) -> None:
    found = [
        Evaluator(recipe({"batch_size": size}), PROMPTS, [Brightness()], cache=tmp_path / str(size)).evaluate(
            pipeline, "w"
        )[0]
        for size in (1, 5)
    ]
    assert values_of(found[0]) == pytest.approx(values_of(found[1]), abs=1e-4)
    assert found[0].identity == found[1].identity
    assert found[0].pictures is not None
    assert found[1].pictures is not None
    assert (found[0].pictures.int() - found[1].pictures.int()).abs().max() <= 1


def test_sdxl_is_evaluated_alike(tmp_path: Path) -> None:
    (result,) = Evaluator(recipe(), PROMPTS, [Brightness()], cache=tmp_path).evaluate(stable_diffusion_xl(), "w")
    assert len(values_of(result)) == 3


def test_the_first_prompts_are_used_and_none_is_an_error(pipeline: Any, tmp_path: Path) -> None:
    evaluator = Evaluator(recipe({"prompts": 2, "images": 8}), PROMPTS, [Brightness()], cache=tmp_path)
    (result,) = evaluator.evaluate(pipeline, "w")
    assert result.prompts == PROMPTS[:2]
    assert result.pictures is not None
    assert len(result.pictures) == 2
    with pytest.raises(UsageError, match="no evaluation prompts"):
        Evaluator(recipe(), [], [Brightness()], cache=tmp_path)


def test_one_prompt_has_no_standard_error_in_json(pipeline: Any, tuned: Any, tmp_path: Path) -> None:
    evaluator = Evaluator(recipe({"prompts": 1}), PROMPTS, [Brightness()], [PixelsEmbedder()], cache=tmp_path)
    (result,) = evaluator.evaluate(tuned, "t", evaluator.evaluate(pipeline, "b"))
    entry = json.loads(json.dumps(result.to_json(), allow_nan=False))["metrics"]["brightness"]
    assert entry["standard_error"] is None
    assert entry["paired"]["p_value"] is None


def test_diversity_of_one_sample_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="undefined for one sample"):
        Evaluator(recipe({"samples_per_prompt": 1}), PROMPTS, [], [PixelsEmbedder()], cache=tmp_path)


def test_a_score_that_is_not_finite_names_metric_and_prompt(pipeline: Any, tmp_path: Path) -> None:
    evaluator = Evaluator(recipe(), PROMPTS, [CountingReward("odd", bad=PROMPTS[1])], cache=tmp_path)
    with pytest.raises(RunError, match="'odd' is nan for the prompt 'two blue triangles'"):
        evaluator.evaluate(pipeline, "w")


class OnceNan(PixelsEmbedder):
    """Not a number in one value of the image with this number, counted from the first that it is shown."""

    def __init__(self, number: int) -> None:
        super().__init__("small", side=2)
        self.number = number

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        first = self.seen
        embeddings = super().__call__(images).clone()
        if first <= self.number < self.seen:
            embeddings[self.number - first, 1] = torch.nan
        return embeddings


@pytest.mark.parametrize("role", ["diversity", "base", "distance"])
def test_an_embedding_that_is_not_finite_names_embedder_and_prompt(
    role: str, pipeline: Any, tuned: Any, tmp_path: Path
) -> None:
    embedder = OnceNan(4 if role != "distance" else TOTAL + 4)  # an image of the second prompt
    chosen: dict[str, Any] = {"diversity": [embedder]} if role == "diversity" else {"distance": [embedder]}
    evaluator = Evaluator(recipe(), PROMPTS, [], **chosen, cache=tmp_path)
    base = evaluator.evaluate(pipeline, "base") if role == "distance" else None
    with pytest.raises(RunError, match="'small' gave values that are not finite for the prompt 'two blue triangles'"):
        evaluator.evaluate(tuned, "tuned", base)
    kept = {path.parent.name for path in tmp_path.rglob("*.*") if path.is_file()}
    assert kept == ({"embeddings", "pictures"} if role == "distance" else set())


def test_scorers_of_a_recipe_are_loaded_once_and_trained_ones_are_shared() -> None:
    trained = CountingReward("brightness")
    chosen = recipe({"metrics": ["colorfulness", "brightness"]})
    evaluator = Evaluator.for_recipe(chosen, PROMPTS, [trained])
    rewards = evaluator._scorers._rewards
    assert list(rewards) == ["brightness", "colorfulness"]
    assert rewards["brightness"] is trained


class TestDistance:
    """KID and FID to the base model's images of the same setting."""

    def test_numbers_are_those_of_the_pictures(self, pipeline: Any, tuned: Any, tmp_path: Path) -> None:
        """Nine images: KID in any embedding, FID where it has fewer dimensions (2 x 1 x RGB)."""
        embedders, notices = [PixelsEmbedder(), PixelsEmbedder("small", side=2)], []
        chosen = recipe({"images": 3})
        evaluator = Evaluator(chosen, PROMPTS, [Brightness()], [], embedders, cache=tmp_path, notify=notices.append)
        base = evaluator.evaluate(pipeline, "base")
        (result,) = evaluator.evaluate(tuned, "tuned", base)
        assert list(base[0].metrics) == ["brightness"]
        assert list(result.metrics) == ["brightness", "kid/pixels", "kid/small", "fid/small"]
        assert result.pictures is not None
        assert base[0].pictures is not None
        for embedder in embedders:
            x, y = (
                torch.stack([embedder(dequantize(prompt)) for prompt in each.pictures]) for each in (result, base[0])
            )
            scale = coordinate_scale(y)
            expected = kid(scale * x, scale * y).tolist()
            assert values_of(result, f"kid/{embedder.name}") == pytest.approx(expected, rel=1e-6)
            assert result.metrics[f"kid/{embedder.name}"].paired is None
        assert values_of(result, "fid/small") == pytest.approx(fid(x, y).tolist(), rel=1e-6)
        assert [notice.kind for notice in notices] == ["fid-left-out"]
        assert "fid/pixels is left out: 9 images do not exceed the 768 dimensions" in notices[0].text
        assert EvaluationResult.load(result.save(tmp_path)).metrics == result.metrics

    def test_the_base_is_at_no_distance_from_itself(self, pipeline: Any, tmp_path: Path) -> None:
        evaluator = Evaluator(recipe(), PROMPTS, [], [], [PixelsEmbedder("small", side=2)], cache=tmp_path)
        (same,) = evaluator.evaluate(pipeline, "the same weights", evaluator.evaluate(pipeline, "base"))
        assert values_of(same, "kid/small") == pytest.approx((0, 0, 0), abs=1e-9)
        assert values_of(same, "fid/small") == pytest.approx((0, 0, 0), abs=1e-7)

    def test_each_setting_has_the_base_of_its_own(self, pipeline: Any, tmp_path: Path) -> None:
        chosen = recipe({"eta": [0.0, 1.0], "guidance_scale": [1.0, 3.0]})
        evaluator = Evaluator(chosen, PROMPTS, [], [], [PixelsEmbedder()], cache=tmp_path)
        for result in evaluator.evaluate(pipeline, "same", evaluator.evaluate(pipeline, "base")):
            assert values_of(result, "kid/pixels") == pytest.approx((0, 0, 0), abs=1e-9)

    def test_the_batch_size_changes_nothing_of_account(self, pipeline: Any, tuned: Any, tmp_path: Path) -> None:
        found = []
        for size in (1, 5):
            embedders = [PixelsEmbedder(), PixelsEmbedder("small", side=2)]
            evaluator = Evaluator(recipe({"batch_size": size}), PROMPTS, [], [], embedders, cache=tmp_path / str(size))
            found += evaluator.evaluate(tuned, "tuned", evaluator.evaluate(pipeline, "base"))
        for name in ("kid/pixels", "kid/small", "fid/small"):
            scale = max(map(abs, values_of(found[0], name)))
            assert values_of(found[0], name) == pytest.approx(values_of(found[1], name), abs=0.01 * scale)

    def test_what_is_known_is_not_computed_again(self, pipeline: Any, tuned: Any, tmp_path: Path) -> None:
        embedder = PixelsEmbedder()

        def run(base_weights: str = "base") -> Any:
            """One embedder, shared: diversity and distance embed each picture once."""
            embedder.seen = 0
            evaluator = Evaluator(recipe(), PROMPTS, [], [embedder], [embedder], cache=tmp_path)
            return evaluator.evaluate(tuned, "tuned", evaluator.evaluate(pipeline, base_weights))[0]

        first = run()
        assert embedder.seen == 2 * TOTAL
        assert run() == first
        assert embedder.seen == 0
        for file in (tmp_path / "embeddings").iterdir():
            file.write_bytes(b"damaged")
        assert run() == first
        assert embedder.seen == TOTAL, "the base's embeddings are made again, the values are known"
        assert run("another base").identity != first.identity
        assert embedder.seen == 2 * TOTAL

    def test_a_base_without_embeddings_is_refused(self, pipeline: Any, tmp_path: Path) -> None:
        base = Evaluator(recipe(), PROMPTS, [], cache=tmp_path).evaluate(pipeline, "base")
        evaluator = Evaluator(recipe(), PROMPTS, [], [], [PixelsEmbedder()], cache=tmp_path)
        with pytest.raises(UsageError, match="holds no embeddings by 'pixels'"):
            evaluator.evaluate(pipeline, "tuned", base)

    def test_two_prompts_are_too_few(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="needs 3 evaluation prompts or more but there are 2"):
            Evaluator(recipe(), PROMPTS[:2], [], [], [PixelsEmbedder()], cache=tmp_path)

    def test_embeddings_without_a_scale_name_the_metric(
        self, pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(PixelsEmbedder, "__call__", lambda self, images: 0 * images.flatten(1))
        evaluator = Evaluator(recipe(), PROMPTS, [], [], [PixelsEmbedder()], cache=tmp_path)
        with pytest.raises(RunError, match="'kid/pixels' is nan for the prompt 'a red circle'"):
            evaluator.evaluate(pipeline, "tuned", evaluator.evaluate(pipeline, "base"))


class TestCache:
    """Nothing that determines a result may be missing from its identity, and nothing else may be in it."""

    @pytest.fixture(scope="module")
    @classmethod
    def filled(cls, tmp_path_factory: pytest.TempPathFactory, pipeline: Any) -> Path:
        """A cache that holds the ordinary evaluation."""
        folder = tmp_path_factory.mktemp("cache")
        reward = CountingReward()
        Evaluator(recipe(), PROMPTS, [reward], cache=folder).evaluate(pipeline, "w")
        assert reward.seen == TOTAL
        return folder

    @pytest.fixture
    def run(self, filled: Path, tmp_path: Path, pipeline: Any) -> Callable[..., int]:
        cache = Path(shutil.copytree(filled, tmp_path / "copy"))

        def run(**changes: Any) -> int:
            """Evaluate with changes; returns how many images were scored, 0 for a full hit."""
            reward = changes.pop("reward", None) or CountingReward()
            prompts = changes.pop("prompts", PROMPTS)
            weights = changes.pop("weights", "w")
            model = changes.pop("pipeline", pipeline)
            Evaluator(recipe(**changes), prompts, [reward], cache=cache).evaluate(model, weights)
            seen: int = reward.seen
            return seen

        return run

    def test_the_same_again_is_a_hit_in_a_new_evaluator(self, run: Callable[..., int]) -> None:
        assert run() == 0

    @pytest.mark.parametrize(
        "changes",
        [
            {"weights": "other"},
            {"prompts": (*PROMPTS[:2], "a big square")},
            {"prompts": PROMPTS[::-1]},
            {"evaluation": {"seed": 1}},
            {"evaluation": {"samples_per_prompt": 2}},
            {"evaluation": {"eta": [0.5]}},
            {"evaluation": {"guidance_scale": [2.0]}},
            {"evaluation": {"num_inference_steps": 3}},
            {"evaluation": {"scheduler": ["default"]}},
            {"schedule": {"beta_start": 0.002, "beta_end": 0.009}},
            {"schedule": {"final_step": "midpoint"}},
            {"schedule": {"timestep_spacing": "leading"}},
            {"model": {"precision": "bf16"}},
            {"reward": CountingReward(version="2")},
            {"reward": CountingReward("other")},
        ],
        ids=str,
    )
    def test_every_ingredient_makes_a_miss(self, run: Callable[..., int], changes: dict[str, Any]) -> None:
        assert run(**changes) > 0

    def test_the_models_own_noise_table_is_an_ingredient(self, run: Callable[..., int]) -> None:
        assert run(pipeline=stable_diffusion(0, scheduler=ddim("v_prediction"))) == TOTAL

    @pytest.mark.parametrize("name", ["PROTOCOL_VERSION", "library_versions"])
    def test_protocol_and_libraries_are_ingredients(
        self, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        if name == "PROTOCOL_VERSION":
            monkeypatch.setattr(module.protocol, name, 2)
        else:
            monkeypatch.setattr("amsd.evaluation.wanted.library_versions", lambda: {"torch": "0"})
        assert run() == TOTAL

    @pytest.mark.parametrize(
        "changes",
        [
            {"evaluation": {"batch_size": 2}},
            {"evaluation": {"every": 3}},
            {"evaluation": {"images": 1}},
            {"training": {"steps": 7, "seed": 5}},
            {"method": {"reward_multiplier": 7.0}},
            {"guidance": {"guidance_scale": 9.0}, "evaluation": {"guidance_scale": [3.0]}},
            {"schedule": {"eta": 0.7}},
        ],
        ids=str,
    )
    def test_what_does_not_matter_is_no_ingredient(self, run: Callable[..., int], changes: dict[str, Any]) -> None:
        assert run(**changes) == 0

    def test_a_new_metric_does_not_compute_the_others_again(self, pipeline: Any, tmp_path: Path) -> None:
        old, new, embedder = CountingReward("brightness"), CountingReward("held-out"), PixelsEmbedder()
        first = Evaluator(recipe(), PROMPTS, [old], cache=tmp_path).evaluate(pipeline, "w")
        again = Evaluator(recipe(), PROMPTS, [old, new], [embedder], cache=tmp_path).evaluate(pipeline, "w")
        assert (old.seen, new.seen, embedder.seen) == (TOTAL, TOTAL, TOTAL)
        assert values_of(first[0]) == values_of(again[0])

    def test_lost_pictures_cost_their_own_prompts_only(
        self, pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reward = CountingReward()
        (first,) = Evaluator(recipe(), PROMPTS, [reward], cache=tmp_path).evaluate(pipeline, "w")
        for file in (tmp_path / "pictures").iterdir():
            file.unlink()
        made = []
        generate = module.protocol.generate
        monkeypatch.setattr(module.protocol, "generate", lambda *given: made.extend(given[3]) or generate(*given))
        (again,) = Evaluator(recipe(), PROMPTS, [reward], cache=tmp_path).evaluate(pipeline, "w")
        assert reward.seen == TOTAL
        assert made == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
        assert first.pictures is not None
        assert again.pictures is not None
        assert (first.pictures.int() - again.pictures.int()).abs().max() <= 1

    def test_pictures_come_back_with_a_hit(self, pipeline: Any, tmp_path: Path) -> None:
        (first,) = Evaluator(recipe(), PROMPTS, [Brightness()], cache=tmp_path).evaluate(pipeline, "w")
        (again,) = Evaluator(recipe({"images": 1}), PROMPTS, [Brightness()], cache=tmp_path).evaluate(pipeline, "w")
        assert first.pictures is not None
        assert again.pictures is not None
        assert torch.equal(first.pictures[:1], again.pictures)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"per_prompt": [1, 2, 3], "sha256": "0"}'])
    def test_a_damaged_file_is_computed_again_and_named(self, pipeline: Any, tmp_path: Path, content: str) -> None:
        notices: list[Notice] = []
        reward = CountingReward()
        evaluator = Evaluator(recipe(), PROMPTS, [reward], cache=tmp_path, notify=notices.append)
        (first,) = evaluator.evaluate(pipeline, "w")
        (file,) = (tmp_path / "metrics").iterdir()
        file.write_text(content)
        (again,) = evaluator.evaluate(pipeline, "w")
        assert reward.seen == 2 * TOTAL
        assert values_of(first) == values_of(again)
        assert [notice.kind for notice in notices] == ["damaged-cache"]
        assert file.name in notices[0].text
        evaluator.evaluate(pipeline, "w")
        assert reward.seen == 2 * TOTAL, "the good file is back"

    def test_damaged_pictures_are_made_again(self, pipeline: Any, tmp_path: Path) -> None:
        notices: list[Notice] = []
        evaluator = Evaluator(recipe(), PROMPTS, [Brightness()], cache=tmp_path, notify=notices.append)
        (first,) = evaluator.evaluate(pipeline, "w")
        (file,) = (tmp_path / "pictures").iterdir()
        whole = file.read_bytes()
        for broken in (whole[:50], whole[:-1] + bytes([whole[-1] ^ 1])):
            file.write_bytes(broken)
            (again,) = evaluator.evaluate(pipeline, "w")
            assert first.pictures is not None
            assert again.pictures is not None
            assert (first.pictures.int() - again.pictures.int()).abs().max() <= 1
        assert [notice.kind for notice in notices] == ["damaged-cache"] * 2


def test_what_changes_pictures_changes_the_name_of_a_result(pipeline: Any, tmp_path: Path) -> None:
    """A negative prompt where guidance leads away from it, and choices of a model that are not weights."""

    def result(recipe: Any, drawn: Any = pipeline) -> Any:
        return Evaluator(recipe, PROMPTS, [Brightness()], cache=tmp_path).evaluate(drawn, "w")[0]

    plain = result(recipe())
    negative = result(recipe(guidance={"negative_prompt": "a blurry dog"}))
    assert plain.stem != negative.stem
    assert plain.metrics["brightness"].per_prompt != negative.metrics["brightness"].per_prompt
    unguided = {"guidance_scale": [1.0]}
    one, other = (result(recipe(unguided, guidance={"negative_prompt": text})) for text in ("", "a blurry dog"))
    assert one.stem == other.stem
    drawn = flux()
    weak, strong = (
        result(recipe(model={"embedded_guidance": value, "size": [16, 16], "max_sequence_length": 16}), drawn)
        for value in (1.0, 5.0)
    )
    assert weak.stem != strong.stem
    assert weak.metrics["brightness"].per_prompt != strong.metrics["brightness"].per_prompt
