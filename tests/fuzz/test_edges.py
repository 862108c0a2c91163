"""Numbers at the edges: they work, or are refused with the reason, and neither takes memory."""

from __future__ import annotations

import errno
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch

from amsd.cli import app as cli
from amsd.cli import main
from amsd.errors import UsageError
from amsd.experiment.sample import SampleRequest
from amsd.reading import is_shortage, reading
from amsd.recipe import Recipe, load_recipe
from amsd.recipe.cost import training_cost
from amsd.sweep.display import outline
from amsd.sweep.load import load_plan
from amsd.sweep.trial import points_to_queue
from tests.fuzz import inputs
from tests.fuzz.properties import recipe_holds

HEAD = 'name = "s"\nrecipe = "shapes"\n[[objective]]\nmetric = "shapes:right"\n[sampler]\nname = "{sampler}"\n'
SEARCHES = {
    "a trillion integers": ("grid", "training.steps = { low = 1, high = 1000000000000 }", "more than 100,000 points"),
    "a tiny step": ("grid", "schedule.eta = { low = 0.5, high = 1.0, step = 1e-12 }", "more than 100,000 points"),
    "the smallest step": ("tpe", "schedule.eta = { low = 0.5, high = 1.0, step = 5e-324 }", "is too small for a range"),
    "a billion points": ("grid", "schedule.eta = { low = 0.5, high = 1.0, points = 1000000000 }", "less than or equal"),
    "a product": (
        "grid",
        "schedule.eta = { low = 0.5, high = 1.0, points = 400 }\noptimizer.weight_decay = { low = 0, high = 1, "
        'points = 400, type = "float" }',
        "more than 100,000 points",
    ),
}


def sweep(folder: Path, sampler: str, search: str, more: str = "") -> Path:
    file = folder / "search.toml"
    file.write_text(f"{HEAD.format(sampler=sampler)}{more}\n[search]\n{search}\n", encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def little_memory() -> object:
    tracemalloc.start()
    yield
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


@pytest.mark.parametrize("case", SEARCHES)
def test_a_search_without_bounds_is_refused(case: str, tmp_path: Path) -> None:
    sampler, search, message = SEARCHES[case]
    with pytest.raises(UsageError, match=message):
        load_plan(sweep(tmp_path, sampler, search, "[budget]\nseconds = 5.0" if sampler == "tpe" else ""))


def test_of_an_endless_grid_the_budget_is_tried(tmp_path: Path) -> None:
    search = "training.steps = { low = 1, high = 1000000000000 }"
    plan = load_plan(sweep(tmp_path, "grid", search, "[budget]\ntrials = 3"))
    assert points_to_queue(plan) == [{"training.steps": 1}, {"training.steps": 2}, {"training.steps": 3}]
    assert list(outline(plan))


@pytest.mark.parametrize(
    ("bounds", "above"), [("low = 1, high = 1000000000000", 999999999998.5), ("low = 0.0, high = 10.0", 2.6)]
)
def test_a_condition_anywhere_in_a_range_is_fulfilled(bounds: str, above: float, tmp_path: Path) -> None:
    key = "training.steps" if "10000" in bounds else "optimizer.weight_decay"
    condition = f'when = {{ "{key}" = {{ above = {above}, below = {above + 1.0} }} }}'
    search = f'"{key}" = {{ {bounds} }}\n"schedule.eta" = {{ low = 0.5, high = 1.0, {condition} }}'
    plan = load_plan(sweep(tmp_path, "tpe", search, "[budget]\ntrials = 3"))
    assert list(plan.sweep.search) == [key, "schedule.eta"]


@pytest.mark.parametrize("key", [key for key in inputs.keys_of(Recipe) if not key.startswith(("code", "tracking"))])
@pytest.mark.parametrize("value", ["1000000000000000000", "1e308", "5e-324"])
def test_an_enormous_number_is_kept_or_refused(key: str, value: str) -> None:
    """What is kept can be written, read, named and costed; what is refused says which key."""
    method = [] if key.startswith("method.name") else ["method.name=buffer-am"]
    refusal = ""
    try:
        recipe = load_recipe("shapes-buffer", [*method, f"{key}={value}"])
    except UsageError as error:
        refusal = str(error)
    if refusal:
        assert key.partition(".")[0].partition("[")[0] in refusal
    else:
        recipe_holds(recipe)
        assert training_cost(recipe) > 0


def test_a_lack_of_memory_says_what_to_lower(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["amsd"])
    for size in (2**50, 2**62):
        monkeypatch.setattr(cli, "app", lambda size=size: torch.empty(size))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        said = capsys.readouterr().err
        assert said.startswith("Error: There is not enough memory. Lower optimizer.micro_batch")
        assert "traceback" not in said


@pytest.mark.parametrize("text", [
    "std::bad_alloc", "CUDA error: out of memory", "could not create a primitive", "can't start new thread",
    "CUDA out of memory. Tried to allocate 2 GiB", "CUBLAS_STATUS_ALLOC_FAILED when calling",
])  # fmt: skip
def test_a_library_that_lacks_memory_is_understood(text: str) -> None:
    assert is_shortage(RuntimeError(text))
    assert not is_shortage(ValueError(text))
    with pytest.raises(RuntimeError), reading("a model", "its file"):  # it is not the file that is damaged
        raise RuntimeError(text)


def test_a_kernel_that_lacks_memory_is_understood() -> None:
    assert is_shortage(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_shortage(OSError(errno.ENOENT, "Cannot allocate memory"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompts": ()}, r"prompts = \(\)"),
        ({"prompts": "a cat"}, "prompts = 'a cat': give a tuple"),
        ({"count": 0}, "count = 0: must be a number from 1 to 100,000"),
        ({"count": 10**18}, "count = 1000000000000000000: must"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**63}, "seed = 9223372036854775808"),
        ({"eta": float("nan")}, "eta = nan: must be a number from 0 on"),
        ({"guidance_scale": float("inf")}, "guidance_scale = inf"),
        ({"num_inference_steps": 0}, "num_inference_steps = 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_python_too(changed: dict[str, object], said: str) -> None:
    asked: dict[str, object] = {"prompts": ("a cat",), **changed}
    with pytest.raises(UsageError, match=said):
        SampleRequest(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "base", "--prompt", "a", "--out", "there", "--eta", "nan"),
        ("sample", "base", "--prompt", "a", "--out", "there", "--guidance-scale", "inf"),
        ("sample", "base", "--prompt", "a", "--out", "there", "--seed", "9223372036854775808"),
        ("sample", "base", "--prompt", "a", "--out", "there", "--count", "1000000000000000000"),
        ("train", "shapes", "--output", "there", "--processes", "1000000000000000000"),
        ("sweep", "run", "cfg-eta", "--output", "there", "--workers", "1000000000000000000"),
        ("sweep", "run", "cfg-eta", "--output", "there", "--trials", "99999999999999999999999999"),
        ("diagnose", "shapes", "--pairs", "1000000000000000000"),
    ],
)
def test_numbers_of_the_command_line_are_refused_at_the_edges(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["amsd", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert command[-2].removeprefix("--").replace("-", "_") in said.replace("-", "_")
    assert list(tmp_path.iterdir()) == []
