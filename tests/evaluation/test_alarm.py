"""The alarm is raised for what it is made for, and for nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from amsd.evaluation.alarm import TrainingSigns, reward_hacking
from amsd.evaluation.result import EvaluationResult, Metric
from amsd.evaluation.statistics import summarize
from amsd.tracking.log import LogEntry

TRAINED = {"reward": 1.0}
PROMPTS = 50


def metric(shift: float, base_mean: float = 1.0, prompts: int = PROMPTS, seed: int = 0) -> Metric:
    """s.d. 1 over prompts; the paired difference is `shift` with s.d. 0.3 over prompts."""
    generator = np.random.default_rng(seed)
    base = base_mean + generator.normal(0, 1, prompts)
    return summarize("1", (base + shift + 0.3 * _standard(generator, prompts)).tolist(), base.tolist())


def _standard(generator: np.random.Generator, count: int) -> np.ndarray:
    noise = generator.normal(0, 1, count)
    return (noise - noise.mean()) / noise.std() if count > 1 else np.zeros(1)


def result(name: str = "fine-tuning-eta1", **metrics: Metric) -> EvaluationResult:
    named = {key.replace("__", "/"): value for key, value in metrics.items()}
    return EvaluationResult(name, {}, "0", ("p",) * PROMPTS, named)


def test_reward_up_and_held_out_metric_down_is_alarming() -> None:
    notice = reward_hacking([result(reward=metric(+1), quality=metric(-0.5))], TRAINED, step=40)
    assert notice is not None
    assert (notice.kind, notice.step) == ("reward-hacking", 40)
    assert "quality -0.5 ± 0.04" in notice.text
    assert notice.values["fine-tuning-eta1/quality"] == pytest.approx(-0.5)
    assert notice.values["fine-tuning-eta1/reward"] == pytest.approx(1.0)


def test_a_distance_to_the_base_neither_alarms_nor_hides_an_alarm() -> None:
    distances = {f"kid__{index}": summarize("1", [0.5, 0.6, 0.7]) for index in range(1000)}
    assert reward_hacking([result(reward=metric(+1), **distances)], TRAINED) is None
    falls = {"reward": metric(+1), "quality": metric(-0.25)}
    alone, among = reward_hacking([result(**falls)], TRAINED), reward_hacking([result(**falls, **distances)], TRAINED)
    assert alone is not None
    assert alone == among


def test_reward_up_and_diversity_down_is_alarming() -> None:
    found = result(reward=metric(+1), diversity__dreamsim=metric(-1, base_mean=5))
    notice = reward_hacking([found], TRAINED)
    assert notice is not None
    assert "diversity/dreamsim" in notice.text


@pytest.mark.parametrize(
    "metrics",
    [
        {"reward": metric(+1), "quality": metric(+0.5)},
        {"reward": metric(+1), "quality": metric(0)},
        {"reward": metric(+1)},
        {"reward": metric(-1), "quality": metric(-0.5)},
        {"reward": metric(0), "quality": metric(-0.5)},
        {"quality": metric(-0.5)},
    ],
    ids=["both rise", "held-out stays", "nothing held out", "both fall", "reward stays", "reward not evaluated"],
)
def test_no_alarm(metrics: dict[str, Metric]) -> None:
    assert reward_hacking([result(**metrics)], TRAINED) is None


def test_a_significant_fall_too_small_to_matter_is_no_alarm() -> None:
    """-0.15 s.d. is significant (3.5 standard errors) but below `METRIC_FALL`; likewise 5% of diversity."""
    small, less_diverse = metric(-0.15), metric(-0.25, base_mean=5)
    for name, found in {"quality": small, "diversity__pixels": less_diverse}.items():
        assert found.paired is not None
        assert found.paired.p_value is not None
        assert found.paired.p_value < 0.002
        assert reward_hacking([result(**{"reward": metric(+1), name: found})], TRAINED) is None


def test_a_large_fall_that_may_be_chance_is_no_alarm() -> None:
    few = metric(-0.3, prompts=4)
    assert few.paired is not None
    assert few.paired.p_value is not None
    assert few.paired.p_value > 0.01
    assert reward_hacking([result(reward=metric(+1), quality=few)], TRAINED) is None


def test_many_held_out_metrics_share_the_significance() -> None:
    """p of about .007 counts alone but not among ten."""
    borderline = metric(-0.6, prompts=6)
    assert borderline.paired is not None
    assert borderline.paired.p_value == pytest.approx(0.0066, abs=3e-4)  # t = .6 sqrt(5) / .3, five degrees of freedom
    calm = {f"m{index}": metric(0) for index in range(9)}
    assert reward_hacking([result(reward=metric(+1), quality=borderline)], TRAINED) is not None
    assert reward_hacking([result(reward=metric(+1), quality=borderline, **calm)], TRAINED) is None


def test_a_reward_of_negative_weight_gains_by_falling() -> None:
    found = [result(reward=metric(-1), quality=metric(-0.5))]
    assert reward_hacking(found, {"reward": -1.0}) is not None
    assert reward_hacking(found, {"reward": +1.0}) is None


def test_rise_and_fall_must_be_under_one_setting() -> None:
    apart = [result("a", reward=metric(+1), quality=metric(0)), result("b", reward=metric(0), quality=metric(-1))]
    assert reward_hacking(apart, TRAINED) is None


def test_single_prompt_and_missing_base_raise_nothing() -> None:
    single = result(reward=metric(+1, prompts=1), quality=metric(-1, prompts=1))
    unpaired = result(reward=summarize("1", [1.0, 2.0]), quality=summarize("1", [0.0, 0.1]))
    assert reward_hacking([single, unpaired], TRAINED) is None


def entries(ratio: float, clamped: float, steps: int = 20) -> list[LogEntry]:
    """A log whose prediction's norm and clamped pixels move from 1 and 0 to these."""
    shares = [step / (steps - 1) for step in range(steps)]
    return [
        LogEntry("step", index + 1, {"prediction_ratio": 1 + (ratio - 1) * share, "clamped_share": clamped * share})
        for index, share in enumerate(shares)
    ]


SIGNS = {"larger prediction": (1.6, 0.0, "times the norm"), "smaller prediction": (0.5, 0.0, "times the norm"),
         "pixels out of range": (1.0, 0.4, "outside the range")}  # fmt: skip


@pytest.mark.parametrize("case", SIGNS)
def test_signs_of_the_training_join_the_alarm_where_the_reward_rose(case: str) -> None:
    ratio, clamped, text = SIGNS[case]
    signs = TrainingSigns.of_log(entries(ratio, clamped))
    notice = reward_hacking([result(reward=metric(+1), quality=metric(0))], TRAINED, 40, signs)
    assert notice is not None
    assert text in notice.text
    assert reward_hacking([result(reward=metric(0), quality=metric(0))], TRAINED, 40, signs) is None


def test_small_signs_and_short_logs_say_nothing() -> None:
    assert TrainingSigns.of_log(entries(1.1, 0.05)).sentences() == []
    assert TrainingSigns.of_log(entries(3.0, 0.9, steps=4)).sentences() == []
    assert TrainingSigns.of_log([LogEntry("step", 1, {"loss": 1.0})] * 30).sentences() == []


def test_the_validation_tells_the_ratio_of_methods_that_do_not_know_it() -> None:
    log = [LogEntry("step", step, {"loss": 1.0, "validation/prediction_ratio": 1.0 + step / 10}) for step in (1, 2, 3)]
    assert TrainingSigns.of_log(log).prediction_ratio == pytest.approx(1.3)
    known = [LogEntry("step", step, {"prediction_ratio": 1.1}) for step in range(5)]
    assert TrainingSigns.of_log([*known, *log]).prediction_ratio == pytest.approx(1.1)
