"""Run directories and sweeps that look real, written without any training, for the tests of the report."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from amsd.recipe import Recipe, dump_toml, from_dict, identity
from amsd.recipe.guidance_modes import mode_of
from amsd.run_directory import RunDirectory
from amsd.sweep.results import SeedRun, SweepResults, TrialResult
from amsd.sweep.schema import Sweep

PROMPTS = ("a small red circle", "two blue triangles", "a big green square", "a small yellow triangle",
           "two white circles", "a big purple circle", "a small orange square", "two cyan squares")  # fmt: skip
COLORS = ("#d33", "#36c", "#2a4", "#db2", "#eee", "#83b", "#e82", "#2cc")
REWARD, HELD_OUT, DIVERSITY = "shapes:right", "shapes:alignment", "diversity/shapes:classifier"
START = 1_790_000_000.0


def recipe(**changes: Any) -> Recipe:
    """A recipe on the embedded model; `changes` are sections."""
    tree: dict[str, Any] = {
        "reward": [{"name": REWARD}],
        "schedule": {"num_inference_steps": 20},
        "method": {"reward_multiplier": 25.0},
        "optimizer": {"prompts_per_step": 16, "micro_batch": 16, "learning_rate": 3e-4, "warmup_steps": 5},
        "training": {"steps": 60, "checkpoint_every": 10, "keep": 10},
        "evaluation": {"metrics": [HELD_OUT], "diversity": ["shapes:classifier"], "eta": [0.0, 1.0]},
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values} if isinstance(values, dict) else values
    return from_dict(tree)


def write_run(
    folder: Path, made: Recipe, strength: float = 0.4, until: int | None = None, pictures: bool = True, seed: int = 0
) -> Path:
    """A run directory as training and evaluation leave it, up to step `until`.

    `strength` is the gain of the reward; diversity and the held-out metric pay for it.
    """
    chance = random.Random(f"{seed}/{strength}")
    run = RunDirectory(folder)
    folder.mkdir(parents=True)
    run.recipe.write_text(dump_toml(made), encoding="utf-8")
    steps = made.training.steps if until is None else until
    blow_up = 1 + 30 * (made.guidance.guidance_in_adjoint_computation and made.guidance.guidance_scale != 1)
    lines = [_line(made, step, strength, blow_up, chance) for step in range(1, steps + 1)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for setting in made.evaluation_settings:
        _evaluate(run.base_evaluation / f"{setting.name}.json", 0.0, None, seed, vars(setting))
    if pictures:
        _draw_all(run.base_samples / made.evaluation_settings[0].name, 0.0)
    for step in range(made.training.checkpoint_every, steps + 1, made.training.checkpoint_every):
        gain = _progress(made, step) * strength
        place = run.checkpoint(step)
        for setting in made.evaluation_settings:
            file = place / "evaluation" / f"{setting.name}.json"
            _evaluate(file, gain, run.base_evaluation / file.name, seed + step, vars(setting))
        (place / "manifest.json").write_text("{}", encoding="utf-8")
        if pictures:
            _draw_all(place / "samples" / made.evaluation_settings[0].name, gain)
        run.point("latest", step)
        run.point("best", step)
    return folder


def append(folder: Path, entry: Mapping[str, Any]) -> None:
    """One more line of metrics.jsonl."""
    with RunDirectory(folder).metrics.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


def write_sweep(folder: Path, seeds: tuple[int, ...] = (0, 1, 2), pictures: bool = True) -> SweepResults:
    """Three named modes and mixed, two values of η, some seeds; one failed, one queued trial and one copy."""
    search = {
        "mode": {
            "variants": {
                "trajectories": {"guidance.guidance_scale": 5.0},
                "none": {"guidance.guidance_scale": 1.0},
                "full": {
                    "guidance.guidance_scale": 5.0,
                    "guidance.guidance_in_adjoint_computation": True,
                    "guidance.guidance_in_control_computation": True,
                },
                "adjoint only": {
                    "guidance.guidance_scale": 5.0,
                    "guidance.guidance_in_adjoint_computation": True,
                },
            }
        },
        "schedule.eta": {"choices": [0.7, 1.0]},
        "method.reward_multiplier": {"low": 1.0, "high": 100.0, "log": True},
    }
    sweep = Sweep.model_validate_json(
        json.dumps(
            {
                "name": "cfg-modes",
                "description": "The guidance modes at equal updates, with and without a memoryless schedule.",
                "recipe": "shapes",
                "search": search,
                "seeds": list(seeds),
                "objective": [{"metric": REWARD}, {"metric": DIVERSITY}],
            }
        )
    )
    gains = {"trajectories": 0.42, "none": 0.35, "full": 0.16, "adjoint only": 0.24}
    chance = random.Random(7)
    trials: list[TrialResult] = []
    for variant, settings in search["mode"]["variants"].items():  # type: ignore[attr-defined]
        for eta in (0.7, 1.0):
            factor = round(10 ** chance.uniform(0.6, 1.9), 1)
            params = {"mode": variant, "schedule.eta": eta, "method.reward_multiplier": factor}
            guidance = {key.partition(".")[2]: value for key, value in settings.items()}
            gain = gains[variant] * (1.05 - 0.25 * (eta < 1)) * (factor / 40) ** 0.25
            trials.append(_trial(folder, len(trials), params, guidance, gain, seeds, pictures))
    number = len(trials)
    base = {"settings": {}, "constraints": {}, "feasible": True, "intermediate": {}, "attempts": 1, "worker": None}
    trials += [
        TrialResult(number=number, state="failed", params={"mode": "full", "schedule.eta": 1.0}, cfg_mode="full CFG",
                    values=None, runs=(), duration=31.0, error="RunError: the adjoint is not finite at step 4",
                    copy_of=None, **base),
        TrialResult(number=number + 1, state="complete", params=trials[2].params, cfg_mode="no guidance",
                    values=trials[2].values, runs=trials[2].runs, duration=0.1, error=None, copy_of=2, **base),
        TrialResult(number=number + 2, state="queued", params={"mode": "none"}, cfg_mode="", values=None, runs=(),
                    duration=None, error=None, copy_of=None, **base),
    ]  # fmt: skip
    return SweepResults("cfg-modes", folder, "sqlite:///sweep.db", sweep, recipe(), tuple(trials), None)


def _trial(
    folder: Path,
    number: int,
    params: Mapping[str, Any],
    guidance: Mapping[str, Any],
    gain: float,
    seeds: tuple[int, ...],
    pictures: bool,
) -> TrialResult:
    runs = []
    for seed in seeds:
        made = recipe(
            guidance=dict(guidance),
            schedule={"eta": params["schedule.eta"]},
            method={"reward_multiplier": params["method.reward_multiplier"]},
            training={"seed": seed},
        )
        place = folder / "trials" / f"{number:04d}-seed{seed}"
        strength = gain * (1 + 0.06 * math.sin(7 * seed + number))
        write_run(place, made, strength, pictures=pictures, seed=seed)
        runs.append(SeedRun(seed, identity(made), place, {REWARD: 0.1 + strength, DIVERSITY: 0.3 - strength / 4}))
    return TrialResult(
        number=number, state="complete", params=params, settings={}, cfg_mode=mode_of(made.guidance).name,
        values=(0.1 + gain, 0.3 - gain / 4), constraints={}, feasible=True, intermediate={}, runs=tuple(runs),
        duration=50.0 + 4 * number, error=None, copy_of=None, attempts=1, worker="host/1",
        started=datetime(2026, 11, 26, 8, 2 * number), ended=datetime(2026, 11, 26, 8, 2 * number + 3),
    )  # fmt: skip


def _progress(made: Recipe, step: int) -> float:
    return 1 - math.exp(-3 * step / made.training.steps)


def _line(made: Recipe, step: int, strength: float, blow_up: float, chance: random.Random) -> dict[str, Any]:
    gain = _progress(made, step) * strength
    noise = chance.gauss
    return {
        "step": step,
        "time": START + 2.1 * step,
        "loss": 40 * blow_up**0.5 * math.exp(-gain) * math.exp(noise(0, 0.25)),
        "reward/mean": 0.1 + gain + noise(0, 0.03),
        "reward/std": 0.1,
        "predicted_shift": gain + noise(0, 0.01),
        "kl": max(0.0, 60 * gain**2 * (1 + noise(0, 0.1))),
        "control_to_target": min(1.0, gain * 1.5) + abs(noise(0, 0.02)),
        "gradient_norm": math.exp(noise(0.3, 0.4)),
        "adjoint_norm/first": 0.9 * blow_up * math.exp(noise(0, 0.2)),
        "adjoint_norm/middle": 0.6 * blow_up**0.6 * math.exp(noise(0, 0.2)),
        "adjoint_norm/last": 0.4 * math.exp(noise(0, 0.2)),
        "learning_rate": 3e-4,
        "masked_share": 0.1,
    }


def _evaluate(file: Path, gain: float, base: Path | None, seed: int, settings: Mapping[str, Any]) -> None:
    """Per-prompt values are the base's plus the gain, so that the paired difference can be computed independently."""
    values = {REWARD: (0.1, 1.0, 0.05), HELD_OUT: (0.9, -0.15, 0.03), DIVERSITY: (0.3, -0.25, 0.02)}
    before = json.loads(base.read_text(encoding="utf-8"))["metrics"] if base else None
    metrics: dict[str, Any] = {}
    for name, (level, factor, spread) in values.items():
        prompts = random.Random(name)
        chance = random.Random(f"{name}{seed}")
        each = [level + prompts.gauss(0, spread) + factor * gain * chance.gauss(1, 0.15) for _ in PROMPTS]
        mean, error = _statistics(each)
        paired = None
        if before is not None:
            changes = [now - then for now, then in zip(each, before[name]["per_prompt"], strict=True)]
            difference, spread_of = _statistics(changes)
            paired = {"difference": difference, "standard_error": spread_of, "p_value": 0.0004 if gain > 0.1 else 0.04}
        metrics[name] = {"mean": mean, "standard_error": error, "per_prompt": each, "paired": paired, "version": "1"}
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"settings": dict(settings), "identity": "0" * 64, "prompts": PROMPTS, "metrics": metrics}
    file.write_text(json.dumps(content), encoding="utf-8")


def _statistics(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _draw_all(folder: Path, gain: float) -> None:
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    for prompt, color in enumerate(COLORS):
        for sample in range(4):
            image = Image.new("RGB", (32, 32), "#808080")
            chance = random.Random(f"{prompt}/{sample}")
            x, y = chance.uniform(8, 16) + 14 * min(gain, 0.6), chance.uniform(9, 22)
            box = (x - 6, y - 6, x + 6, y + 6)
            draw = ImageDraw.Draw(image)
            (draw.ellipse if prompt % 2 == 0 else draw.rectangle)(box, fill=color)
            image.save(folder / f"p{prompt:03d}-s{sample}.png")
