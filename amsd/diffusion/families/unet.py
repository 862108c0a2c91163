"""What pipelines with a UNet2DConditionModel and an AutoencoderKL have in common: the DDIM family of steps."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amsd.diffusion.families.base import Family
from amsd.diffusion.families.ddim_export import departures, inference_scheduler
from amsd.diffusion.families.ddim_scheduler import SOCDDIMScheduler
from amsd.diffusion.families.decoding import decode_in_slices
from amsd.diffusion.families.fit import Configs, require_channels, require_width, text_config
from amsd.diffusion.families.kohya import base_version
from amsd.diffusion.families.ldm_names import ldm_names
from amsd.diffusion.families.texts import embedded
from amsd.diffusion.guidance import Network, TextCondition
from amsd.diffusion.steps import AffineSteps
from amsd.diffusion.windows import encode_windows, tokens_read
from amsd.errors import UsageError
from amsd.recipe import Schedule

_PREDICTIONS = ("epsilon", "v_prediction", "sample")


class UNetFamily(Family):
    """A UNet on a variance-preserving path."""

    denoiser_name = "unet"
    denoiser_class = "UNet2DConditionModel"
    output_layers = ("conv_out",)
    model_keys = ("prompt_windows",)
    largest_eta = 1.0
    scales_by_statistics: ClassVar[bool] = False
    """Whether the pipeline obeys `latents_mean` and `latents_std` of its autoencoder."""

    @classmethod
    def check_schedule(cls, schedule: Schedule) -> None:
        """Every key but one means something."""
        if schedule.shift_terminal is not None:
            raise UsageError(
                f"schedule.shift_terminal = {schedule.shift_terminal:g} has no effect on this model: it ends the grid "
                "of a flow-matching model. Remove the key."
            )

    @classmethod
    def require_fit(cls, configs: Configs, what: str) -> None:
        """Channels, widths of the text, and what the network predicts."""
        unet, makes = configs["unet"], configs["vae"].get("latent_channels", 4)
        predicted = configs["scheduler"].get("prediction_type", "epsilon")
        if predicted not in _PREDICTIONS:
            raise UsageError(
                f"{what}: its scheduler's configuration says prediction_type = {predicted!r}; "
                f"amsd supports {', '.join(_PREDICTIONS)}."
            )
        require_channels(unet.get("in_channels", 4), makes, what)
        if unet.get("out_channels", 4) != makes:
            raise UsageError(f"{what}: its UNet gives {unet['out_channels']} channels; its VAE has {makes}.")
        expected = unet.get("cross_attention_dim", 1280)
        if isinstance(expected, int):
            encoders = [text_config(configs[name]) for name in cls.text_encoder_names if name in configs]
            require_width("text", expected, sum(config.get("hidden_size", 512) for config in encoders), what)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Embeddings of the windows of each prompt, (B, windows x L, D); what is pooled is that of the first."""
        tokenizers = [name.replace("text_encoder", "tokenizer") for name in self.text_encoder_names]
        windows = encode_windows(
            self.pipeline, tokenizers, self.model.prompt_windows, lambda: self._encode_window(prompts)
        )
        return TextCondition(torch.cat([each.hidden_states for each in windows], 1), windows[0].added)

    @abstractmethod
    def _encode_window(self, prompts: Sequence[str]) -> TextCondition:
        """As `encode`, by the tokenizers that the pipeline holds now."""

    def _tokens_read(self, encoder: str) -> int:
        return tokens_read(super()._tokens_read(encoder), self.model.prompt_windows)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(in_channels, height, width) of the network's input."""
        scale = int(self.pipeline.vae_scale_factor)
        return (self.denoiser.config.in_channels, self.size[0] // scale, self.size[1] // scale)

    def _size_multiple(self) -> int:
        """The pipeline's call asks for multiples of 8, whatever its autoencoder."""
        return math.lcm(8, int(self.pipeline.vae_scale_factor))

    def _default_size(self) -> tuple[int, int]:
        side = self.denoiser.config.sample_size
        if side is None:
            raise UsageError("The model's UNet does not say its size (sample_size): set model.size = [height, width].")
        height, width = (side, side) if isinstance(side, int) else side
        scale = int(self.pipeline.vae_scale_factor)
        return height * scale, width * scale

    def other_layer_names(self) -> Mapping[str, str]:
        """Those of the original layout."""
        return ldm_names(self.denoiser)

    def network(self, module: nn.Module) -> Network:
        """The UNet as a function."""

        def network(x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
            added = dict(condition.added) or None
            output: Tensor = module(
                x, timesteps, encoder_hidden_states=condition.hidden_states, added_cond_kwargs=added, return_dict=False
            )[0]
            return output.to(x.dtype)

        return network

    def decode(self, latents: Tensor) -> Tensor:
        """AutoencoderKL in float32, whatever the networks' precision."""
        vae = self.pipeline.vae
        pixels = latents.shape[-2] * latents.shape[-1] * int(self.pipeline.vae_scale_factor) ** 2
        return decode_in_slices(vae, self._unscaled(vae.config, latents.float()), pixels)

    def _unscaled(self, config: Any, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the decoder takes them.

        Source: `StableDiffusionXLPipeline.__call__` of diffusers (Playground 2.5 has statistics per channel).
        """
        mean, deviation = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        if not self.scales_by_statistics or mean is None or deviation is None:
            return latents / float(config.scaling_factor)
        mean, deviation = (latents.new_tensor(value).view(1, -1, 1, 1) for value in (mean, deviation))
        return latents * deviation / float(config.scaling_factor) + mean

    def steps(self, schedule: Schedule) -> AffineSteps:
        """DDIM's steps on the model's noise table, or on that of the recipe."""
        return self.training_sampler(schedule).affine(schedule.eta)

    def training_sampler(self, schedule: Schedule) -> SOCDDIMScheduler:
        """DDIM with the next grid point as target of every step."""
        self.check_step_count(schedule.num_inference_steps)
        _require_noise_table(self.pipeline.scheduler)
        try:
            scheduler: SOCDDIMScheduler = SOCDDIMScheduler.for_recipe(self.pipeline.scheduler, schedule)
        except ValueError as error:
            raise UsageError(f"[schedule] does not fit the model's noise table: {error}.") from error
        return scheduler

    def _most_steps(self) -> int | None:
        """The noise table has one row for each step at most."""
        return int(self.pipeline.scheduler.config.get("num_train_timesteps", 1000))

    def exported_sampler(self, schedule: Schedule) -> Any:
        """Plain DDIM."""
        return inference_scheduler(self.pipeline.scheduler, schedule)

    def departures(self, schedule: Schedule) -> Iterator[str]:
        """The half last step, and eta above 1."""
        return departures(schedule)

    def own_sampler(self, eta: float) -> tuple[Any, str | None]:
        """The model's own scheduler; DDIM on its noise table where it has no eta and noise is asked for."""
        own = self.pipeline.scheduler
        _require_noise_table(own)
        if eta == 0 or "eta" in inspect.signature(own.step).parameters:
            return type(own).from_config(own.config), None
        from diffusers import DDIMScheduler

        return DDIMScheduler.from_config(own.config, clip_sample=False), (
            f"the model's own {type(own).__name__} has no eta: DDIM with the model's own noise levels replaces it"
        )

    def blank_condition(self, device: str) -> TextCondition:
        """77 tokens a window, and size ids where the network reads them."""
        config = self.denoiser.config
        text = torch.empty(1, 77 * self.model.prompt_windows, config.cross_attention_dim, device=device)
        if config.addition_embed_type != "text_time":
            return TextCondition(text)
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.empty(1, 6, device=device)
        return TextCondition(text, {"text_embeds": torch.empty(1, pooled, device=device), "time_ids": sizes})

    def prompt_arguments(self, prompt: TextCondition, negative: TextCondition) -> dict[str, Any]:
        """Embeddings, and pooled ones where there are any."""
        return embedded(prompt, negative, "text_embeds")

    def kohya_base(self) -> str:
        """From the width of the text that the UNet attends to."""
        return base_version(self.denoiser.config)

    def _call(self, prompt: Mapping[str, Any], guidance_scale: float) -> dict[str, Any]:
        return {"guidance_scale": guidance_scale}


def _require_noise_table(scheduler: Any) -> None:
    """Check that a scheduler means a variance-preserving path with a table of noise levels.

    Raises:
        UsageError: it means another path (flow matching, EDM), or its table is none.
    """
    name = type(scheduler).__name__
    if "beta_schedule" not in inspect.signature(type(scheduler).__init__).parameters or scheduler.config.get(
        "use_flow_sigmas"
    ):
        raise UsageError(
            f"The model's scheduler is a {name} without a table of betas: its network was trained for another path "
            "(flow matching or EDM) than Stable Diffusion's UNets, so amsd would misread its predictions."
        )
    betas = scheduler.betas
    if not bool(((betas >= 0) & (betas <= 1)).all()):
        raise UsageError(
            f"The model's scheduler ({name}) has no noise table: its betas ({scheduler.config.get('beta_start')} to "
            f"{scheduler.config.get('beta_end')}) are not between 0 and 1. Correct its scheduler_config.json."
        )
