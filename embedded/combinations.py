"""All combinations of attributes, and their split into training and evaluation captions."""

from collections.abc import Sequence
from itertools import product

from amsd.shapes.captions import ANY_SHAPE, COLORS, FORMS, SHAPES, Attributes

Combination = tuple[int, int, int]
"""Indices of color, shape and form."""


def attributes_of(combination: Combination) -> Attributes:
    """The fully named attributes of a combination of indices."""
    color, shape, form = combination
    return Attributes(tuple(COLORS)[color], SHAPES[shape], (FORMS[form],))


def all_combinations() -> list[Combination]:
    """All 72 combinations (color, shape, form) as indices."""
    return list(product(range(len(COLORS)), range(len(SHAPES)), range(len(FORMS))))


def evaluation_combinations() -> list[Combination]:
    """The 16 combinations that no training image shows, two per color.

    Chosen as a Latin pattern: each pair of attributes still occurs in training, so that a held-out caption asks for
    a new combination, never for a new pair.
    """
    held_out: list[Combination] = []
    for color in range(len(COLORS)):
        for turn in range(2):
            held_out.append((color, (color + turn) % 3, (color // 3 + 2 * turn + color) % 3))
    return sorted(held_out)


def train_combinations() -> list[Combination]:
    """The 56 combinations that training images show."""
    held_out = set(evaluation_combinations())
    return [combination for combination in all_combinations() if combination not in held_out]


def captions(combinations: Sequence[Combination]) -> list[str]:
    """The full caption of every combination."""
    return [attributes_of(combination).caption() for combination in combinations]


def vocabulary() -> list[str]:
    """Every word that a caption can contain, sorted."""
    nouns = [*SHAPES, ANY_SHAPE]
    return sorted({"a", *FORMS, *COLORS, *nouns, *(noun + "s" for noun in nouns)})
