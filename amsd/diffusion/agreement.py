"""Does amsd ask a pipeline's networks what the pipeline itself would ask them? Looked at once, before training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from amsd.diffusion.families.base import Family
from amsd.errors import RunError

_PROMPT = "a photo of a cat"
_STEPS = 4
"""Fewest steps that all schedulers of diffusers take: PNDM begins with four of Runge and Kutta."""
TOLERANCE = 1e-2
"""Largest difference, relative to the largest value: precisions round differently, and mistakes are larger."""

Arguments = Mapping[str, Any]
"""Arguments of a call by name."""


@torch.no_grad()
def require_agreement(family: Family) -> None:
    """Compare what amsd gives to the denoiser and to the decoder with what the pipeline's own call gives them.

    The two networks are not run, for equal inputs have equal outputs: the cost is the encoding of one prompt, twice.

    Raises:
        RunError: an input differs; it is named.
    """
    # The pipeline's own call reads one window of a prompt; each is encoded as that one.
    family = type(family)(family.pipeline, family.model.model_copy(update={"prompt_windows": 1}))
    pipeline = family.pipeline
    height, width = family.size
    own, pipeline.scheduler = pipeline.scheduler, type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    last: list[Tensor] = []
    try:
        with _recorded(family.denoiser) as asked, _recorded_decoder(pipeline.vae, (height, width)) as decoded:
            noise = torch.randn(1, *family.latent_shape, generator=torch.Generator().manual_seed(0))
            theirs: Tensor = family.draw(
                {"prompt": _PROMPT}, [torch.Generator().manual_seed(0)], eta=0.0, guidance_scale=1.0,
                num_inference_steps=_STEPS, output_type="pt", latents=noise.to(family.device), callback=_keep(last),
            )  # fmt: skip
            x, timesteps = next(iter(_tensors(asked[0]).values())), pipeline.scheduler.timesteps[:1].to(noise.device)
            family.network(family.denoiser)(x, timesteps.to(x.device), family.encode([_PROMPT]))
            ours = family.decode(last[-1]).clamp(0, 1)
    finally:
        pipeline.scheduler = own
    _require_equal(asked[0], asked[-1], "the denoiser")
    _require_equal({"latents": decoded[0]}, {"latents": decoded[-1]}, "the decoder")
    _require_equal({"picture": theirs}, {"picture": ours}, "the user")


def _keep(latents: list[Tensor]) -> Callable[..., dict[str, Any]]:
    """A callback of the pipeline that keeps the latents of every step."""

    def callback(pipeline: Any, step: int, timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        latents.append(arguments["latents"])
        return {}

    return callback


@contextmanager
def _recorded(module: nn.Module) -> Iterator[list[Arguments]]:
    """Inside, calls of a denoiser are kept, by the names of its arguments, and give zeros."""
    calls: list[Arguments] = []
    signature = inspect.signature(type(module).forward)

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        bound = signature.bind(module, *args, **kwargs).arguments
        calls.append(bound)
        return (torch.zeros_like(next(value for value in bound.values() if isinstance(value, Tensor))),)

    object.__setattr__(module, "forward", forward)
    try:
        yield calls
    finally:
        object.__delattr__(module, "forward")


@contextmanager
def _recorded_decoder(vae: nn.Module, size: tuple[int, int]) -> Iterator[list[Tensor]]:
    """Inside, what is given to the decoder is kept, and the picture is of one gray that depends on it."""
    seen: list[Tensor] = []

    def decode(z: Tensor, **_: Any) -> tuple[Tensor]:
        seen.append(z)
        return (z.mean().tanh().expand(len(z), 3, *size),)

    object.__setattr__(vae, "decode", decode)
    try:
        yield seen
    finally:
        object.__delattr__(vae, "decode")


def _require_equal(theirs: Arguments, ours: Arguments, receiver: str) -> None:
    for name, value in _tensors(theirs).items():
        other = _tensors(ours).get(name)
        if other is None or not _close(value, other):
            raise RunError(
                f"amsd and the model's own pipeline do not agree on the {name} of {receiver}: the pipeline gives shape "
                f"{tuple(value.shape)}, amsd gives {_described(other, value)}. amsd would train a different model than "
                "the files describe. Please report this model."
            )


def _described(other: Tensor | None, value: Tensor) -> str:
    if other is None:
        return "nothing"
    return "other values" if other.shape == value.shape else f"shape {tuple(other.shape)}"


def _tensors(arguments: Arguments) -> dict[str, Tensor]:
    """Tensors by name, those of nested dictionaries too."""
    found: dict[str, Tensor] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, Mapping):
            found |= {f"{name}.{key}": each for key, each in _tensors(value).items()}
    return found


def _close(a: Tensor, b: Tensor) -> bool:
    a, b = a.cpu().double(), b.cpu().double()
    if a.ndim != b.ndim:  # one time for the whole batch, or one per row
        a, b = a.flatten(), b.flatten()
    if a.shape != b.shape:
        return False
    return float((a - b).abs().max()) <= TOLERANCE * max(1e-6, float(a.abs().max()))
