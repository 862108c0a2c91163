"""Whoever comes from the reference implementation is told what to type."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.cli.hints import OPTIONS
from amsd.errors import UsageError
from amsd.recipe import load_recipe
from tests.documentation.pages import ROOT


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("command", ["train", "eval"])
def test_every_option_of_the_reference_is_answered(command: str, option: str) -> None:
    for arguments in ([command, option, "x"], [command, "base", f"{option}=x"]):
        error = CliRunner().invoke(app, arguments).exception
        assert isinstance(error, UsageError)
        assert error.exit_code == 2
        assert f"{option} is an option of the reference" in str(error)


@pytest.mark.parametrize("arguments", [["eval", "base_model"], ["train", "configs/multi_prompt.yaml"]])
def test_its_words_for_the_base_model_and_its_files_too(arguments: list[str]) -> None:
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, UsageError)
    assert "`base`" in str(error) or "sd15-am" in str(error)


def test_options_that_amsd_has_are_left_alone() -> None:
    assert CliRunner().invoke(app, ["sample", "--seed", "3", "--eta", "0.5", "--help"]).exit_code == 0


def test_the_keys_that_the_page_and_the_answers_name_exist() -> None:
    page = (ROOT / "docs" / "coming-from-the-reference.md").read_text(encoding="utf-8")
    recipe = load_recipe("sd15-buffer-am").model_dump()
    sections = set(recipe)
    words = {word.strip("`,.():") for text in (page, *OPTIONS.values()) for word in text.replace("=", " ").split()}
    keys = {word for word in words if "." in word and word.partition(".")[0] in sections and "/" not in word}
    assert len(keys) > 25
    for key in keys:
        node = recipe
        for part in key.split("."):
            assert part in node, key
            node = node[part]
