"""The attributes of a scene and the captions that name them.

No torch here: `amsd --help` and the recipe room may read prompt files and captions without paying for it.
"""

from dataclasses import dataclass

# Corners of a cube around the mid-gray background: every color is equally far from the background, and none
# touches the limits 0 and 1, where clamping a decoded image would have no gradient.
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.9, 0.1),
    "blue": (0.1, 0.1, 0.9),
    "yellow": (0.9, 0.9, 0.1),
    "cyan": (0.1, 0.9, 0.9),
    "magenta": (0.9, 0.1, 0.9),
    "white": (0.9, 0.9, 0.9),
    "black": (0.1, 0.1, 0.1),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle")
FORMS: tuple[str, ...] = ("small", "big", "two")
BACKGROUND = 0.5
"""Gray level of the one background: a varying background would be remembered by the memoryless sampler."""

ANY_SHAPE = "shape"
GRAMMAR = f"'a [small|big] [color] noun' or 'two [color] nouns', noun = {' | '.join((*SHAPES, ANY_SHAPE))}"


@dataclass(frozen=True)
class Attributes:
    """What a caption asks for; None where it leaves an attribute open.

    `forms` lists the forms that satisfy the caption: ("small", "big") for a single object of unnamed size.
    """

    color: str | None
    shape: str | None
    forms: tuple[str, ...]

    @property
    def form(self) -> str | None:
        """The one form that the caption names, or None where it leaves the size open."""
        return self.forms[0] if len(self.forms) == 1 else None

    def caption(self) -> str:
        """The caption that names these attributes, such as "two blue triangles"; "" if nothing is named."""
        if self.forms == FORMS:
            if self.color is not None or self.shape is not None:
                raise ValueError(f"no caption names {self}: a caption says 'a' or 'two'")
            return ""
        noun = self.shape or ANY_SHAPE
        words = ["two"] if self.form == "two" else ["a", *([self.form] if self.form else [])]
        words += [self.color] if self.color else []
        return " ".join([*words, noun + "s" if self.form == "two" else noun])


NOTHING = Attributes(color=None, shape=None, forms=FORMS)
"""The attributes of the empty caption."""


def parse_caption(caption: str) -> Attributes:
    """Read a caption of the grammar back into attributes; the empty caption names nothing.

    Raises ValueError with the grammar for anything else: a reward that guessed would score the wrong thing.
    """
    words = caption.lower().replace(".", " ").replace(",", " ").split()
    if not words:
        return NOTHING
    article, rest = words[0], words[1:]
    if article not in ("a", "two") or not rest:
        raise _unreadable(caption)
    forms: tuple[str, ...] = ("two",) if article == "two" else ("small", "big")
    if article == "a" and rest[0] in forms:
        forms, rest = (rest[0],), rest[1:]
    color = rest.pop(0) if rest and rest[0] in COLORS else None
    if len(rest) != 1:
        raise _unreadable(caption)
    noun = rest[0].removesuffix("s") if article == "two" else rest[0]
    if noun not in (*SHAPES, ANY_SHAPE):
        raise _unreadable(caption)
    return Attributes(color, None if noun == ANY_SHAPE else noun, forms)


def _unreadable(caption: str) -> ValueError:
    return ValueError(
        f"caption {caption!r} is not of the form {GRAMMAR}; colors: {', '.join(COLORS)} "
        "(the shapes: rewards read captions of the embedded model only)"
    )
