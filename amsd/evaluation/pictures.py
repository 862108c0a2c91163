"""Samples as files: one PNG per image, a grid per setting, and the base model above the fine-tuned one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from amsd.evaluation.result import EvaluationResult
from amsd.files import write_file, write_folder

_GAP = 2
_CELL = 128
"""Smallest side of an image in a labeled comparison: small images are enlarged by whole factors."""
_CAPTION_LINES = 4
"""Lines of a prompt above its column."""


def to_image(picture: Tensor) -> Image.Image:
    """One picture (3, H, W), uint8, as an image."""
    return Image.fromarray(picture.permute(1, 2, 0).cpu().contiguous().numpy())


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        DiskError: it cannot be written.
    """
    write_file(path, lambda stream: image.save(stream, "PNG"))


def grid(pictures: Tensor, zoom: int = 1) -> Image.Image:
    """Pictures (rows, columns, 3, H, W), uint8, as one image: a prompt per row, a sample per column."""
    rows, columns, _, height, width = pictures.shape
    cell_width, cell_height = width * zoom + _GAP, height * zoom + _GAP
    canvas = Image.new("RGB", (columns * cell_width - _GAP, rows * cell_height - _GAP), "white")
    for row in range(rows):
        for column in range(columns):
            image = to_image(pictures[row, column])
            if zoom > 1:
                image = image.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            canvas.paste(image, (column * cell_width, row * cell_height))
    return canvas


def save_pictures(result: EvaluationResult, folder: Path) -> Path | None:
    """Write `folder/<stem>/p000-s0.png` ... and `grid.png`, all or none.

    Returns that folder, or None if the result has no pictures.
    """
    pictures = result.pictures
    if pictures is None or not len(pictures):
        return None

    def fill(aside: Path) -> None:
        for prompt, samples in enumerate(pictures):
            for sample, picture in enumerate(samples):
                to_image(picture).save(aside / f"p{prompt:03d}-s{sample}.png")
        grid(pictures).save(aside / "grid.png")

    target = folder / result.stem
    write_folder(target, fill)
    return target


def side_by_side(base: Tensor, tuned: Tensor, prompts: Sequence[str] = ()) -> Image.Image:
    """Pictures (n, 3, H, W), uint8, of two models: the base's in the upper row, the same noise fine-tuned below.

    `prompts` stand above their columns, broken into lines of a picture's width.

    Raises:
        ValueError: the two have different shapes.
    """
    if base.shape != tuned.shape or base.ndim != 4:
        raise ValueError(f"expected two equal shapes (n, 3, H, W) but got {tuple(base.shape)} and {tuple(tuned.shape)}")
    zoom = max(1, -(-_CELL // base.shape[-1]))
    rows = [grid(pictures[None], zoom) for pictures in (base, tuned)]
    head = _captions(prompts[: len(base)], base.shape[-1] * zoom, rows[0].width)
    size = max(14, rows[0].height // 9)
    font = ImageFont.load_default(size)
    band = size + size // 2
    canvas = Image.new("RGB", (rows[0].width, head.height + 2 * (rows[0].height + band)), "white")
    canvas.paste(head, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, (row, label) in enumerate(zip(rows, ("base model", "fine-tuned"), strict=True)):
        top = head.height + index * (row.height + band)
        draw.text((size // 4, top + band // 2), label, fill="black", font=font, anchor="lm")
        canvas.paste(row, (0, top + band))
    return canvas


def _captions(prompts: Sequence[str], cell: int, width: int) -> Image.Image:
    """A strip of `width` pixels with a text above each column of `cell` pixels; of no height without texts."""
    size = max(11, cell // 11)
    font = ImageFont.load_default(size)
    broken = [_lines(prompt, font, cell - size // 2) for prompt in prompts]
    height = round(1.25 * size * max(map(len, broken), default=0)) + (size // 2 if broken else 0)
    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    for column, lines in enumerate(broken):
        for row, line in enumerate(lines):
            draw.text((column * (cell + _GAP) + size // 4, size // 4 + round(1.25 * size * row)), line, "black", font)
    return strip


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """A text in at most `_CAPTION_LINES` lines of `width` pixels; what does not fit ends in an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    shown = lines[:_CAPTION_LINES]
    cut = len(lines) > len(shown)
    for index, line in enumerate(shown):
        last = cut and index == len(shown) - 1
        mark = "..." if last else ""
        while line and font.getlength(line + mark) > width:
            line, mark = line[:-1], "..."
        shown[index] = line + mark
    return shown
