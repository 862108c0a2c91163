"""Prompts that are longer than what reads them: said in the same words by training, evaluation, sampling, diagnosis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from amsd.diffusion.windows import windows_needed
from amsd.prompts.load import token_counts
from amsd.recipe import Model, Recipe

if TYPE_CHECKING:
    from amsd.diffusion.families.base import Family


def cut_prompts(family: Family, recipe: Recipe, prompts: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Say how many prompts the model's text encoders do not read to their end; `prompts` by what they are for.

    The negative prompt is looked at as well.
    """
    negative = recipe.guidance.negative_prompt
    named = {**prompts, **({"negative": [negative]} if negative else {})}
    for what, texts in named.items():
        yield from dict.fromkeys(_cut(family, what, texts))


def cut_by_scorers(what: str, counts: Mapping[str, int]) -> Iterator[str]:
    """Say how many prompts the scorers do not read to their end; `counts` by scorer."""
    for name, count in counts.items():
        if count:
            yield f"{_are(count, what)} longer than {name} reads."


def _cut(family: Family, what: str, texts: Sequence[str]) -> Iterator[str]:
    limits = family.text_limits
    several = len({limit.tokens for limit in limits.values()}) > 1
    for limit in limits.values():
        counts = token_counts(texts, limit.tokenizer)
        cut = sum(count > limit.tokens for count in counts)
        if cut:
            t5 = "T5" in type(limit.tokenizer).__name__
            reader = ("T5" if t5 else "CLIP") if several else "the text encoder"
            yield (
                f"{_are(cut, what)} longer than the {limit.tokens} tokens that {reader} reads; the rest is cut."
                f"{_way_out(family, limit.tokenizer, t5, max(counts))}"
            )


def _way_out(family: Family, tokenizer: Any, t5: bool, longest: int) -> str:
    """The key that lets so long a prompt be read; empty where none does."""
    if not t5 and "prompt_windows" in family.model_keys:
        needed = windows_needed(longest, int(tokenizer.model_max_length))
        return f" model.prompt_windows = {needed} reads all." if needed <= _largest("prompt_windows") else ""
    if t5 and longest <= _largest("max_sequence_length"):
        return f" model.max_sequence_length = {longest} reads all."
    return ""


def _largest(key: str) -> int:
    """Largest value that the recipe takes for a key of the model."""
    return min(int(limit.le) for limit in Model.model_fields[key].metadata if hasattr(limit, "le"))


def _are(count: int, what: str) -> str:
    return f"1 {what} prompt is" if count == 1 else f"{count} {what} prompts are"
