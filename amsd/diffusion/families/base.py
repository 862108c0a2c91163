"""What a family of models says: its networks, its steps, its prompts, its latents, and how its pipeline is called."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from amsd.diffusion.families.drawing import Drawing
from amsd.diffusion.families.fit import Configs
from amsd.diffusion.families.published import Published
from amsd.diffusion.guidance import Network
from amsd.diffusion.steps import AffineSteps
from amsd.errors import UsageError
from amsd.recipe import Model, Recipe, Schedule

_CHOICES = ("max_sequence_length", "embedded_guidance", "prompt_windows")
"""Keys of the recipe's `[model]` that some families have."""


class Family(Drawing):
    """The architecture-specific half of a latent diffusion pipeline.

    Args:
        pipeline: the loaded diffusers pipeline.
        model: the recipe's choices, such as the size of the pictures; unset: the defaults.

    Raises:
        UsageError: the model cannot draw this size, or a choice means nothing to it.
    """

    denoiser_name: ClassVar[str]
    """Name of the denoising network in the pipeline, and of its folder."""
    denoiser_class: ClassVar[str]
    """Class of the denoiser in diffusers."""
    published: ClassVar[tuple[Published, ...]] = ()
    """Models that plans know by heart."""
    output_layers: ClassVar[tuple[str, ...]]
    """Last layers of the denoiser: with their weights at zero its output is zero."""
    model_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of the recipe's `[model]` that this family has and others have not."""
    guidance_is_input: ClassVar[bool] = False
    """Whether the network takes guidance as an input (`model.embedded_guidance`) instead of a second branch."""
    optional_parts: ClassVar[tuple[str, ...]] = ()
    """Parts that `model.t5 = false` leaves out."""

    def __init__(self, pipeline: Any, model: Model | None = None) -> None:
        self.pipeline = pipeline
        self.model = model or Model()
        self._check_choices()
        self.size = self.model.size or self._default_size()
        self._check_size()

    @classmethod
    @abstractmethod
    def check_schedule(cls, schedule: Schedule) -> None:
        """Refuse keys of the schedule that mean nothing here.

        Raises:
            UsageError: there is one; it is named.
        """

    @classmethod
    @final
    def check_recipe(cls, recipe: Recipe) -> None:
        """Refuse keys of a recipe that mean nothing here.

        Raises:
            UsageError: there is one; it is named.
        """
        cls.check_schedule(recipe.schedule)
        scales = [recipe.guidance.guidance_scale, *(each.guidance_scale for each in recipe.evaluation_settings)]
        cls.check_negative_prompt(recipe.guidance.negative_prompt, max(scales))

    @classmethod
    @final
    def check_negative_prompt(cls, negative_prompt: str, guidance_scale: float) -> None:
        """Refuse a negative prompt where the family's own guidance has no second prompt.

        Raises:
            UsageError: nothing leads away from it.
        """
        if cls.guidance_is_input and negative_prompt and guidance_scale <= 1:
            raise UsageError(
                f"guidance.negative_prompt = {negative_prompt!r} has no effect: this model's own guidance "
                "(model.embedded_guidance) is an input of its network and takes no second prompt. Set "
                "guidance.guidance_scale above 1 for true guidance, or remove the negative prompt."
            )

    @classmethod
    @abstractmethod
    def require_fit(cls, configs: Configs, what: str) -> None:
        """Check that the parts of a pipeline were made for each other; all that draw are there (`require_all`).

        Raises:
            UsageError: they were not; the numbers that disagree are named.
        """

    # The networks

    @property
    def denoiser(self) -> Any:
        """The denoising network that the pipeline holds now."""
        return getattr(self.pipeline, self.denoiser_name)

    @denoiser.setter
    def denoiser(self, module: nn.Module) -> None:
        # `components` of a pipeline and its attributes are one: nothing else has to be told.
        setattr(self.pipeline, self.denoiser_name, module)

    def other_layer_names(self) -> Mapping[str, str]:
        """Names that other tools give to the denoiser's layers, or to what contains them, by those of diffusers."""
        return {}

    def joined_layer_names(self) -> Mapping[str, tuple[str, ...]]:
        """Layers of other tools, each with the one or the several here whose outputs it has, one after the other."""
        return {}

    @abstractmethod
    def network(self, module: nn.Module) -> Network:
        """A denoising module of this family as a function of (x, timesteps, condition)."""

    # Latents and pictures

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent as the denoiser takes it, such as (4, 64, 64)."""

    def initial_noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Latents (B, *latent_shape), float32 on the CPU, as the pipeline's call draws them in single precision."""
        return torch.stack([torch.randn(self.latent_shape, generator=each) for each in generators])

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, *latent_shape) to images (B, 3, H, W) in float32, about [0, 1] but not clamped."""

    @abstractmethod
    def _default_size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was trained at."""

    @final
    def _check_choices(self) -> None:
        """Refuse keys of the model that mean nothing to this family."""
        for key in _CHOICES:
            if key not in self.model_keys and getattr(self.model, key) != Model.model_fields[key].default:
                raise UsageError(
                    f"model.{key} = {getattr(self.model, key)!r} has no effect: {type(self).__name__} has no such "
                    "input. Remove the key."
                )
        self._check_inputs()

    def _check_inputs(self) -> None:
        """Refuse keys of the family that mean nothing to this very model.

        Raises:
            UsageError: there is one; it is named.
        """

    @property
    @final
    def choices(self) -> dict[str, Any]:
        """Keys of the model, besides its weights and its size, that determine pictures and are not at their default."""
        return {
            key: getattr(self.model, key)
            for key in self.model_keys
            if getattr(self.model, key) != Model.model_fields[key].default
        }

    def _check_size(self) -> None:
        multiple = self._size_multiple()
        if any(side % multiple or side < multiple for side in self.size):
            raise UsageError(f"model.size = {list(self.size)}: this model draws multiples of {multiple} pixels only.")

    def _size_multiple(self) -> int:
        """Both sides of a picture are multiples of this number of pixels."""
        return int(self.pipeline.vae_scale_factor)

    # Steps and samplers

    @abstractmethod
    def steps(self, schedule: Schedule) -> AffineSteps:
        """The affine steps of a recipe, from the pipeline's own scheduler.

        Raises:
            UsageError: the pipeline's scheduler has no affine step, or a key of the schedule means nothing here.
        """

    @abstractmethod
    def training_sampler(self, schedule: Schedule) -> Any:
        """A scheduler for the pipeline that takes the steps of fine-tuning.

        Raises:
            UsageError: as `steps`.
        """

    @abstractmethod
    def exported_sampler(self, schedule: Schedule) -> Any:
        """A plain diffusers scheduler that steps as fine-tuning does, for exports and for `amsd sample`."""

    @abstractmethod
    def departures(self, schedule: Schedule) -> Iterator[str]:
        """What the exported sampler does otherwise than fine-tuning did, as sentences."""

    @abstractmethod
    def own_sampler(self, eta: float) -> tuple[Any, str | None]:
        """The model's own scheduler for a noise level, and why it is another one where it has no such noise."""

    # LoRA

    @final
    def write_lora(self, folder: Path, file: str, layers: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Write a LoRA of the denoiser as a file for diffusers' loader."""
        arguments: dict[str, Any] = {
            f"{self.denoiser_name}_lora_layers": dict(layers),
            f"{self.denoiser_name}_lora_adapter_metadata": dict(metadata),
        }
        self.pipeline.save_lora_weights(folder, weight_name=file, **arguments)

    @final
    def merge_lora(self) -> None:
        """Add the denoiser's LoRA to its weights and take it out."""
        self.pipeline.fuse_lora(components=[self.denoiser_name])
        self.pipeline.unload_lora_weights()

    def kohya_base(self) -> str:
        """The base model in the words of kohya's LoRA format ("sd_v1"); empty where it has no word for it.

        Raises:
            UsageError: the format has no names for the layers of this family.
        """
        raise UsageError("Kohya's format has names for UNets only; export in diffusers' format.")
