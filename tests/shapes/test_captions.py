import subprocess
import sys

import pytest

from amsd.shapes import prompts_path
from amsd.shapes.captions import COLORS, FORMS, NOTHING, SHAPES, Attributes, parse_caption
from embedded.combinations import all_combinations, attributes_of, captions, evaluation_combinations, train_combinations


def test_caption_names_its_attributes() -> None:
    assert Attributes("red", "circle", ("small",)).caption() == "a small red circle"
    assert Attributes("blue", "triangle", ("two",)).caption() == "two blue triangles"
    assert Attributes(None, None, ("small", "big")).caption() == "a shape"
    assert NOTHING.caption() == ""


def test_captions_read_back() -> None:
    for combination in all_combinations():
        attributes = attributes_of(combination)
        assert parse_caption(attributes.caption()) == attributes
    for forms in (*((form,) for form in FORMS), ("small", "big")):
        for color in (*COLORS, None):
            for shape in (*SHAPES, None):
                attributes = Attributes(color, shape, forms)
                assert parse_caption(attributes.caption()) == attributes
    assert parse_caption("") == NOTHING
    assert parse_caption("A big Red square.") == Attributes("red", "square", ("big",))


@pytest.mark.parametrize(
    "caption", ["a cat", "red circle", "two red circle s", "a", "a red small circle", "two big red circles"]
)
def test_other_captions_are_refused_with_the_grammar(caption: str) -> None:
    with pytest.raises(ValueError, match=r"small\|big"):
        parse_caption(caption)


def test_no_caption_for_attributes_between_one_and_two() -> None:
    with pytest.raises(ValueError, match="no caption names"):
        Attributes("red", None, FORMS).caption()


def test_splits_are_disjoint_and_complete() -> None:
    train, evaluation = train_combinations(), evaluation_combinations()
    assert (len(train), len(evaluation)) == (56, 16)
    assert {*train, *evaluation} == set(all_combinations())
    for first, second in ((0, 1), (0, 2), (1, 2)):
        every = {(c[first], c[second]) for c in all_combinations()}
        assert {(c[first], c[second]) for c in train} == every, "a held-out caption asks for an unseen pair"


def test_prompt_files_are_the_splits() -> None:
    assert prompts_path("train").read_text().splitlines() == captions(train_combinations())
    assert prompts_path("evaluation").read_text().splitlines() == captions(evaluation_combinations())
    with pytest.raises(ValueError, match="'train' and 'evaluation'"):
        prompts_path("test")  # type: ignore[arg-type]


def test_package_and_captions_import_without_torch() -> None:
    code = "import sys, amsd.shapes, amsd.shapes.captions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
