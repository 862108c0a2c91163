"""Were the parts of a pipeline made for each other? Checks on their configurations, for all families."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from amsd.errors import UsageError
from amsd.reading import read_json

PADDED_VOCABULARY = 128
"""Text networks may have that many embeddings more than their tokenizer has tokens."""
_UNLIMITED = 10**9
"""What a tokenizer without a length says is more."""
_FEWEST = 3
"""Tokens that a tokenizer must give for a prompt to have one."""
_MOST_TIMESTEPS = 100_000
"""Nobody trains with so many; a table of them is made when a scheduler is."""
_MAY_BE_INFINITE = "lambda_min_clipped"
"""The key of DPM solvers that diffusers itself writes as -Infinity."""
_DIFFERENT = "The parts are of different models."

Configs = Mapping[str, Mapping[str, Any]]
"""Configuration of each part by its name in the pipeline."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text half of a configuration that may be the whole CLIP's."""
    half: Mapping[str, Any] = config.get("text_config") or config
    return half


def require_parts(parts: Collection[str], names: Sequence[str], what: str) -> None:
    """Check that the parts are there.

    Raises:
        UsageError: one is absent.
    """
    for name in names:
        if name not in parts:
            raise UsageError(f"{what}: it has no {name}. The folder is incomplete, or of another kind.")


def require_vocabularies(configs: Configs, vocabularies: Mapping[str, int], what: str) -> None:
    """Check each tokenizer's number of tokens against its text encoder.

    Raises:
        UsageError: they disagree.
    """
    for name, tokens in vocabularies.items():
        encoder = name.replace("tokenizer", "text_encoder")
        if encoder not in configs:
            continue
        size = text_config(configs[encoder]).get("vocab_size", 49408)
        if not size - PADDED_VOCABULARY <= tokens <= size:
            raise UsageError(
                f"{what}: {name} has {tokens} tokens, but {encoder} knows {size}. A file of the tokenizer is missing, "
                "or the two are of different models."
            )


def require_lengths(configs: Configs, lengths: Mapping[str, int], what: str) -> None:
    """Check that no tokenizer gives more tokens than its text encoder has positions for.

    Raises:
        UsageError: one does, or does not say how many it gives.
    """
    for name, tokens in lengths.items():
        encoder = name.replace("tokenizer", "text_encoder")
        if tokens < _FEWEST:
            raise UsageError(
                f"{what}: {name} gives {tokens} tokens at most (model_max_length in {name}/tokenizer_config.json), of "
                "which two are its marks of begin and end: no prompt would be read. Correct its model_max_length."
            )
        positions = text_config(configs.get(encoder, {})).get("max_position_embeddings")
        if positions is not None and tokens > positions:
            given = f"gives up to {tokens} tokens" if tokens < _UNLIMITED else "does not say how many tokens it gives"
            raise UsageError(
                f"{what}: {name} {given}, but {encoder} reads {positions}. Set model_max_length = {positions} in "
                f"{name}/tokenizer_config.json."
            )


def require_scaling(configs: Configs, what: str) -> None:
    """Check that the autoencoder's scale is a number above 0.

    Raises:
        UsageError: it is none.
    """
    scale = configs["vae"].get("scaling_factor", 1.0)
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not 0 < scale < float("inf"):
        raise UsageError(f"{what}: its vae/config.json says scaling_factor = {scale!r}; it must be above 0.")


def scheduler_config(file: Path, what: str) -> dict[str, Any]:
    """The configuration of a scheduler, its numbers looked at before a table is made of them.

    Raises:
        UsageError: it cannot be read, or a number of it is none or out of its range; the file is named.
    """
    config = read_json(file, what, infinite=True)
    for key, value in config.items():
        if isinstance(value, float) and math.isinf(value) and key != _MAY_BE_INFINITE:
            raise UsageError(f"{what}: {file} says {key} = {value:g}; it must be finite. Correct it.")
    count, shift = config.get("num_train_timesteps", 1000), config.get("shift", 1.0)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= _MOST_TIMESTEPS:
        raise UsageError(
            f"{what}: {file} says num_train_timesteps = {str(count)[:30]!r}; it must be a whole number from 1 to "
            f"{_MOST_TIMESTEPS:,}. Correct it, or download it again."
        )
    if not isinstance(shift, int | float) or isinstance(shift, bool) or not 0 < shift < float("inf"):
        raise UsageError(f"{what}: {file} says shift = {str(shift)[:30]!r}; it must be a number above 0. Correct it.")
    return config


def require_channels(takes: int, makes: int, what: str) -> None:
    """Check the denoiser's input channels against the autoencoder's latent channels.

    Raises:
        UsageError: they differ.
    """
    if takes != makes:
        kind = " (an inpainting model: it also reads a mask and a masked picture)" if takes == 2 * makes + 1 else ""
        raise UsageError(
            f"{what}: its denoising network takes {takes} input channels{kind}, but its VAE has {makes} latent "
            "channels. Use a text-to-image model."
        )


def require_shift(configs: Configs, what: str) -> None:
    """Check that the autoencoder of a flow-matching model says its shift, which pipelines add without asking.

    Raises:
        UsageError: it does not.
    """
    shift = configs["vae"].get("shift_factor")
    if not isinstance(shift, int | float) or isinstance(shift, bool):
        raise UsageError(
            f"{what}: its vae/config.json says shift_factor = {shift!r}, but the pipeline of this model adds a number "
            "to every latent. Set shift_factor there, to 0.0 if the autoencoder has none."
        )


def require_velocity(gives: int | None, takes: int, what: str) -> None:
    """Check that a flow-matching transformer gives one velocity for each channel; `gives` None means as many.

    Raises:
        UsageError: it gives something else.
    """
    if gives is not None and gives != takes:
        raise UsageError(
            f"{what}: its transformer takes {takes} channels and gives {gives}; a velocity has as many as it takes. "
            "Use a text-to-image model."
        )


def require_width(text: str, expected: int, given: int, what: str) -> None:
    """Check the width of text as the denoiser reads it against what its encoders give.

    Raises:
        UsageError: they differ.
    """
    if expected != given:
        raise UsageError(
            f"{what}: its denoising network reads {text} of width {expected}, but its text encoders give {given}. "
            f"{_DIFFERENT}"
        )
