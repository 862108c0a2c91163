"""FLUX.1: latents packed into tokens, image ids, a T5 and a CLIP encoder, and guidance as an input of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amsd.diffusion.families.fit import Configs, require_channels, require_shift, require_velocity, require_width
from amsd.diffusion.families.flow import FlowFamily
from amsd.diffusion.families.original_names import flux_names
from amsd.diffusion.families.published import CLIP_L, T5_XXL, VAE_16, Published
from amsd.diffusion.guidance import Network, TextCondition
from amsd.errors import UsageError
from amsd.recipe import Model

_PACKED = 4
"""Latent pixels in one token: a square of 2 x 2."""


class Flux(FlowFamily):
    """`FluxPipeline`, dev and schnell.

    The dev model was distilled with guidance as an input: `model.embedded_guidance` is that input, one more condition
    in all three roles. `guidance.guidance_scale` above 1 is true guidance with two branches on top of it.
    """

    denoiser_class = "FluxTransformer2DModel"
    text_encoder_names = ("text_encoder", "text_encoder_2")
    guidance_is_input = True
    model_keys = ("max_sequence_length", "embedded_guidance")
    published = tuple(
        Published(
            names=(name,),
            denoiser={"guidance_embeds": guided},
            parts={"text_encoder": CLIP_L, "text_encoder_2": T5_XXL, "vae": VAE_16},
            stored_bytes=2,
        )
        for name, guided in (("FLUX.1-dev", True), ("FLUX.1-schnell", False))
    )

    @classmethod
    def require_fit(cls, configs: Configs, what: str) -> None:
        """Channels of transformer and autoencoder, widths of the text."""
        transformer = configs["transformer"]
        require_channels(transformer.get("in_channels", 64) // _PACKED, configs["vae"].get("latent_channels", 4), what)
        require_shift(configs, what)
        require_velocity(transformer.get("out_channels"), transformer.get("in_channels", 64), what)
        clip, t5 = configs.get("text_encoder", {}), configs.get("text_encoder_2", {})
        require_width("pooled text", transformer.get("pooled_projection_dim", 768), clip.get("hidden_size", 512), what)
        require_width("T5's text", transformer.get("joint_attention_dim", 4096), t5.get("d_model", 512), what)

    def _check_inputs(self) -> None:
        """The schnell model was distilled without guidance."""
        chosen = self.model.embedded_guidance
        if chosen is not None and not self.denoiser.config.guidance_embeds:
            raise UsageError(
                f"model.embedded_guidance = {chosen:g} has no effect: this model has no input for guidance "
                "(guidance_embeds = false, as in FLUX.1-schnell). Remove the key."
            )

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(tokens, in_channels): the packed latent."""
        rows, columns = self._grid_of_tokens
        return (rows * columns, self.denoiser.config.in_channels)

    @property
    def _grid_of_tokens(self) -> tuple[int, int]:
        multiple = self._size_multiple()
        return self.size[0] // multiple, self.size[1] // multiple

    def _default_size(self) -> tuple[int, int]:
        side = int(self.pipeline.default_sample_size) * int(self.pipeline.vae_scale_factor)
        return side, side

    def _size_multiple(self) -> int:
        return 2 * int(self.pipeline.vae_scale_factor)

    def joined_layer_names(self) -> Mapping[str, tuple[str, ...]]:
        """Those of the original layout."""
        return flux_names(self.denoiser)

    def network(self, module: nn.Module) -> Network:
        """The transformer as a function; ids of tokens and the embedded guidance are added."""

        def network(x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
            text = condition.hidden_states
            config: Any = module.config
            guidance = None
            if config.guidance_embeds:
                guidance = torch.full([len(x)], self.embedded_guidance, device=x.device, dtype=torch.float32)
            output: Tensor = module(
                hidden_states=x, timestep=timesteps.to(x.dtype) / 1000, guidance=guidance,
                pooled_projections=condition.added["pooled_projections"], encoder_hidden_states=text,
                txt_ids=x.new_zeros(text.shape[1], 3), img_ids=self._image_ids(x), return_dict=False,
            )[0]  # fmt: skip
            return output.to(x.dtype)

        return network

    def _image_ids(self, x: Tensor) -> Tensor:
        """Row and column of every token, (tokens, 3)."""
        rows, columns = self._grid_of_tokens
        ids = torch.zeros(rows, columns, 3, device=x.device, dtype=x.dtype)
        ids[..., 1] = torch.arange(rows, device=x.device, dtype=x.dtype)[:, None]
        ids[..., 2] = torch.arange(columns, device=x.device, dtype=x.dtype)[None, :]
        return ids.flatten(0, 1)

    @property
    def embedded_guidance(self) -> float:
        """What the network is told; diffusers' default where the recipe says nothing."""
        return 3.5 if self.model.embedded_guidance is None else self.model.embedded_guidance

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """T5's token embeddings (B, L, D) and CLIP's pooled embedding (B, P)."""
        embeddings, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(prompts), prompt_2=None, device=self.device, max_sequence_length=self.text_tokens
        )
        return TextCondition(embeddings.float(), {"pooled_projections": pooled.float()})

    def _tokens_read(self, encoder: str) -> int:
        return self.text_tokens if encoder == "text_encoder_2" else super()._tokens_read(encoder)

    @property
    def text_tokens(self) -> int:
        """Tokens that T5 reads."""
        chosen = self.model.max_sequence_length
        return 512 if chosen is None else chosen

    def initial_noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Drawn as a picture has it, and packed."""
        (rows, columns), channels = self._grid_of_tokens, self.latent_shape[1] // 4
        shape = (channels, 2 * rows, 2 * columns)
        drawn = torch.stack([torch.randn(shape, generator=each) for each in generators])
        packed: Tensor = self.pipeline._pack_latents(drawn, len(drawn), *shape)
        return packed

    def decode(self, latents: Tensor) -> Tensor:
        """Unpacked, then by the AutoencoderKL in float32."""
        height, width = self.size
        return self._decoded(self.pipeline._unpack_latents(latents, height, width, self.pipeline.vae_scale_factor))

    def _set_grid(self, scheduler: Any, num_inference_steps: int) -> None:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = scheduler.config
        mu = calculate_shift(
            self.latent_shape[0], config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5), config.get("max_shift", 1.15),
        )  # fmt: skip
        sigmas = None
        if not config.get("use_flow_sigmas", False):
            sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(num_inference_steps, sigmas=sigmas, mu=mu)

    def _call(self, prompt: Mapping[str, Any], guidance_scale: float) -> dict[str, Any]:
        given = "prompt_embeds" in prompt or "negative_prompt" in prompt
        true = {} if given or guidance_scale == 1 else {"negative_prompt": ""}
        return {
            "guidance_scale": self.embedded_guidance, "true_cfg_scale": guidance_scale,
            "max_sequence_length": self.text_tokens, **true,
        }  # fmt: skip

    @classmethod
    def documented_call(cls, model: Model, guidance_scale: float) -> dict[str, Any]:
        """The embedded guidance, and a second branch where the recipe has one."""
        embedded = 3.5 if model.embedded_guidance is None else model.embedded_guidance
        tokens = {} if model.max_sequence_length is None else {"max_sequence_length": model.max_sequence_length}
        true = {} if guidance_scale == 1 else {"true_cfg_scale": guidance_scale, "negative_prompt": ""}
        return super().documented_call(model, embedded) | tokens | true

    def blank_condition(self, device: str) -> TextCondition:
        """Shapes of one prompt's condition."""
        config = self.denoiser.config
        return TextCondition(
            torch.empty(1, self.text_tokens, config.joint_attention_dim, device=device),
            {"pooled_projections": torch.empty(1, config.pooled_projection_dim, device=device)},
        )
