"""A reward behind HTTP, against the reference server of `examples/` and against servers that misbehave."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from amsd.errors import UsageError
from amsd.recipe import RecipeError, identity, load_recipe
from amsd.rewards.calling import RewardFailed, WrongScores, call
from amsd.rewards.server import HTTPReward
from amsd.rewards.table import resolve_reward
from tests.rewards.serving import Script, example, reply, running, serving

IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a red circle", "", "two\nlines", "ein grüner Kreis \N{RAINBOW}", '"quoted"']
SECRET = "hunter2hunter2"


def jagged(images: Tensor, prompts: list[str], power: float = 1.0) -> list[float]:
    """Numbers that use every bit of the images and the prompts."""
    return [float((image.double() ** power).sum()) * len(prompt) for image, prompt in zip(images, prompts, strict=True)]


def sum_of(images: Tensor, prompts: list[str]) -> Tensor:
    return images.sum((1, 2, 3))


@pytest.mark.parametrize("options", [{}, {"images_per_call": 2}, {"parameters": {"power": 3.0}}])
def test_a_server_gives_what_the_function_gives_to_the_digit(options: dict[str, Any]) -> None:
    with serving(jagged) as url:
        found = resolve_reward(url, options)(IMAGES, PROMPTS)
    expected = jagged(IMAGES, PROMPTS, **options.get("parameters", {}))
    assert torch.equal(found, torch.tensor(expected))
    assert found.dtype == torch.float32


def test_the_shape_count_of_the_examples_is_served_to_the_digit() -> None:
    from embedded.combinations import all_combinations
    from embedded.scenes import render, sample_scenes

    count = example("shape_count").shape_count
    scenes = sample_scenes(all_combinations(), 64, torch.Generator().manual_seed(1))
    images = render(scenes)
    drawn = 1 + (scenes.radius[:, 1] > 0).double().numpy()
    local = count(images, [""] * 64)
    assert (local == drawn).all()
    with serving(count) as url:
        assert HTTPReward(url.removeprefix("http:"))(images, [""] * 64).tolist() == local.tolist()


def test_requests_hold_at_most_so_many_images_and_groups_stay_whole() -> None:
    with running(server := Script([reply([1.0, 2.0]), reply([3.0, 4.0]), reply([5.0])])) as url:
        reward = resolve_reward(url, {"images_per_call": 2})
        assert reward(IMAGES, PROMPTS).tolist() == [1, 2, 3, 4, 5]
    header = json.loads(server.bodies[1].partition(b"\n")[0])
    assert header == {"protocol": 1, "shape": [2, 3, 8, 8], "dtype": "float32", "prompts": PROMPTS[2:4],
                      "groupwise": False, "parameters": {}}  # fmt: skip
    with running(server := Script([reply([0.0] * 40)])) as url:
        resolve_reward(url, {"groupwise": True})(torch.rand(40, 3, 2, 2), [""] * 40)
    assert len(server.bodies) == 1


def test_a_server_that_is_busy_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    answers = [(503, b"loading"), (500, b""), (429, b"slow down"), reply([0.5] * 5)]
    with running(server := Script(answers, **{"Retry-After": "4"})) as url, caplog.at_level(logging.WARNING):
        assert resolve_reward(url)(IMAGES, PROMPTS).tolist() == [0.5] * 5
    assert len(server.bodies) == 4
    assert [wait for wait in waits if wait >= 0.5] == [4.0, 8.0, 16.0]
    assert "503" in caplog.text
    assert "loading" in caplog.text


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_final_answer_is_not_asked_for_again(status: int) -> None:
    with running(server := Script([(status, b'{"error": "no such reward"}')])) as url:
        with pytest.raises(RewardFailed, match=rf"{url}: answered {status} .*no such reward"):
            resolve_reward(url)(IMAGES, PROMPTS)
        assert len(server.bodies) == 1


def test_a_server_that_stays_silent_is_named_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(server := Script([reply([0.0] * 5)], delay=1.0)) as url:
        reward = resolve_reward(url, {"timeout": 0.2, "retries": 1})
        with pytest.raises(RewardFailed, match=rf"{url}: no answer within 0\.2 s \(tried 2 times"):
            reward(IMAGES, PROMPTS)
        assert len(server.bodies) == 2
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(RewardFailed, match=rf"{url}: .*refused.* \(tried 2 times"):
        reward(IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"<html>Sign in</html>", r'expected \{"scores": \[5 numbers\]\}, but got <html>Sign in</html>'),
        (b"", "but got nothing"),
        (b"\x1b[2J\x07boo", r"but got \?\[2J\?boo"),
        (b"[1, 2, 3, 4, 5]", r"but got \[1, 2, 3, 4, 5\]"),
        (b'{"scores": "12345"}', "but got"),
        (b'{"scores": [1, 2]}', r"returned a list of 2 int for 5 images"),
        (b'{"scores": [1, 2, 3, 4, "5"]}', "returned a list of 5 int, str for 5 images"),
        (b'{"scores": [1, 2, 3, 4, null]}', "returned a list of 5 NoneType, int for 5 images"),
        (b'{"scores": [[1], [2], [3], [4]]}', "returned a list of 4 list for 5 images"),
        (b'{"scores": [1, 2, 3, 4, 1e300]}', "too large for float32"),
        (b"[" * 100_000, "but got"),
    ],
)
def test_what_is_no_list_of_scores_is_shown(content: bytes, text: str) -> None:
    with running(Script([(200, content)])) as url, pytest.raises(WrongScores, match=text) as failure:
        call(resolve_reward(url), IMAGES, PROMPTS)
    assert url in str(failure.value)


def test_an_endless_answer_and_a_redirect_are_refused() -> None:
    with (
        running(Script([(200, b" " * (2**24 + 1))])) as url,
        pytest.raises(RewardFailed, match=r"more than 16,777,216 bytes"),
    ):
        resolve_reward(url)(IMAGES, PROMPTS)
    with running(other := Script([reply([0.0] * 5)])) as elsewhere:
        redirect = Script([(307, b"moved")], Location=elsewhere)
        with running(redirect) as url, pytest.raises(RewardFailed, match=rf"{url}: answered 307"):
            resolve_reward(url, {"version": "1"})(IMAGES, PROMPTS)
        assert not other.bodies


def test_the_version_is_the_servers_with_what_it_is_asked() -> None:
    with serving(sum_of, "a") as url:
        ways: list[dict[str, Any]] = [{}, {"version": "b"}, {"parameters": {"power": 2}}, {"groupwise": True}]
        versions = {resolve_reward(url, options).version for options in ways}
        assert len(versions) == 4
        assert resolve_reward(url, {"version": "a"}).version == resolve_reward(url).version
    with pytest.raises(UsageError, match=rf"{url}: Connection refused\. Start the server"):
        resolve_reward(url)
    resolve_reward(url, {"version": "a"})  # nothing is asked


def test_a_token_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    with serving(sum_of, token=SECRET) as url:
        reward = resolve_reward(url, {"token_env": "MY_TOKEN"})
        assert reward(IMAGES, PROMPTS).tolist() == sum_of(IMAGES, PROMPTS).tolist()
        with pytest.raises(RewardFailed, match="answered 401"):
            resolve_reward(url, {"version": "1"})(IMAGES, PROMPTS)
    echo = Script([(400, f"I got Bearer {SECRET}".encode())])
    with running(echo) as url, pytest.raises(RewardFailed, match=r"I got Bearer \*\*\*"):
        resolve_reward(url, {"token_env": "MY_TOKEN"})(IMAGES, PROMPTS)
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(UsageError, match="token_env names MY_TOKEN, which is not set"):
        resolve_reward(url, {"token_env": "MY_TOKEN"})


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{SECRET}@127.0.0.1:1/score", f"https://{SECRET}@host/", f"http://host/score?token={SECRET}",
        f"http://host/?a=1&api_key={SECRET}", f"http://me:{SECRET}@host:99999/",
    ],
)  # fmt: skip
def test_a_url_with_a_password_is_refused_before_anything_is_written(url: str) -> None:
    text = r"may hold no login and no password.*token_env"
    with pytest.raises(UsageError, match=text) as failure:
        resolve_reward(url)
    assert SECRET not in str(failure.value)
    for setting in (f'reward=[{{name = "{url}"}}]', f'evaluation.metrics=["{url}", "{url}"]'):
        with pytest.raises(RecipeError, match=text) as refused:
            load_recipe("shapes", [setting])
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize("url", ["http:score", "http://", "http://host:99999/", "http://[::1/", "https:///path",
                                 "http://a b/", "http://host/#top"])  # fmt: skip
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"is not a URL|never sent"):
        resolve_reward(url)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": "1"}, {"retries": -1}, {"images_per_call": 0},
                                     {"token": "x"}])  # fmt: skip
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"option '?{next(iter(options))}"):
        resolve_reward("http://127.0.0.1:1/", {"version": "1", **options})


def test_how_a_server_is_talked_to_is_no_part_of_a_runs_identity() -> None:
    def named(options: str) -> str:
        return identity(
            load_recipe("shapes", ["method.name=ram", f'reward=[{{name = "http://host/", options = {options}}}]'])
        )

    assert named('{ timeout = 5, retries = 9, images_per_call = 2, token_env = "NAME" }') == named("{}")
    assert named('{ version = "2" }') != named("{}") != named("{ parameters = { power = 2 } }")


def test_nothing_goes_to_a_proxy_on_the_way_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(sum_of) as url:
        assert len(resolve_reward(url)(IMAGES, PROMPTS)) == 5
