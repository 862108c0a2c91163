"""Stable Diffusion 3 and 3.5: a multimodal transformer, two CLIP encoders, and a T5 encoder that may be absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amsd.diffusion.families.fit import require_channels, require_shift, require_velocity, require_width
from amsd.diffusion.families.flow import FlowFamily
from amsd.diffusion.families.original_names import sd3_names
from amsd.diffusion.families.published import CLIP_G_POOLED, CLIP_L_POOLED, T5_XXL, VAE_16, Published
from amsd.diffusion.guidance import Network, TextCondition
from amsd.diffusion.windows import encode_windows, tokens_read
from amsd.errors import UsageError
from amsd.recipe import Model

_CLIP_TOKENIZERS = ("tokenizer", "tokenizer_2")
_HEAD = 64
"""Width of one attention head of the published models."""


def _published(name: str, layers: int, positions: int, **config: Any) -> Published:
    """A model of so many layers, and as many heads in each; `positions` is the side of its table of positions."""
    return Published(
        names=(name,),
        denoiser={
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": layers,
            "attention_head_dim": _HEAD, "num_attention_heads": layers, "joint_attention_dim": 4096,
            "caption_projection_dim": _HEAD * layers, "pooled_projection_dim": 2048, "pos_embed_max_size": positions,
            **config,
        },
        parts={
            "text_encoder": CLIP_L_POOLED, "text_encoder_2": CLIP_G_POOLED, "text_encoder_3": T5_XXL, "vae": VAE_16,
        },
        stored_bytes=2,
    )  # fmt: skip


class StableDiffusion3(FlowFamily):
    """`StableDiffusion3Pipeline`."""

    denoiser_class = "SD3Transformer2DModel"
    published = (
        _published("stable-diffusion-3.5-medium", 24, 384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13))),
        _published("stable-diffusion-3.5-large", 38, 192, qk_norm="rms_norm"),
        _published("stable-diffusion-3-medium", 24, 192),
    )

    text_encoder_names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    optional_parts = ("text_encoder_3", "tokenizer_3")
    model_keys = ("max_sequence_length", "prompt_windows")

    @classmethod
    def require_fit(cls, configs: Mapping[str, Mapping[str, Any]], what: str) -> None:
        """Channels of transformer and autoencoder, widths of the text."""
        transformer = configs["transformer"]
        require_channels(transformer.get("in_channels", 16), configs["vae"].get("latent_channels", 4), what)
        require_shift(configs, what)
        require_velocity(transformer.get("out_channels", 16), transformer.get("in_channels", 16), what)
        clip = [configs[name] for name in ("text_encoder", "text_encoder_2") if name in configs]
        pooled = sum(config.get("projection_dim", 512) for config in clip)
        require_width("pooled text", transformer.get("pooled_projection_dim", 2048), pooled, what)
        if "text_encoder_3" in configs:
            width = configs["text_encoder_3"].get("d_model", 512)
            require_width("T5's text", transformer.get("joint_attention_dim", 4096), width, what)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(in_channels, height, width)."""
        scale = int(self.pipeline.vae_scale_factor)
        return (self.denoiser.config.in_channels, self.size[0] // scale, self.size[1] // scale)

    def _default_size(self) -> tuple[int, int]:
        side = int(self.denoiser.config.sample_size) * int(self.pipeline.vae_scale_factor)
        return side, side

    def _size_multiple(self) -> int:
        return int(self.pipeline.vae_scale_factor) * int(self.denoiser.config.patch_size)

    def _check_size(self) -> None:
        super()._check_size()
        positions = self.denoiser.config.pos_embed_max_size  # None: computed for each size
        if positions is not None and max(self.size) > positions * self._size_multiple():
            largest = positions * self._size_multiple()
            raise UsageError(f"model.size = {list(self.size)}: this model draws at most {largest} pixels a side.")

    def joined_layer_names(self) -> Mapping[str, tuple[str, ...]]:
        """Those of the original layout."""
        return sd3_names(self.denoiser)

    def network(self, module: nn.Module) -> Network:
        """The transformer as a function."""

        def network(x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
            output: Tensor = module(
                hidden_states=x, timestep=timesteps, encoder_hidden_states=condition.hidden_states,
                pooled_projections=condition.added["pooled_projections"], return_dict=False,
            )[0]  # fmt: skip
            return output.to(x.dtype)

        return network

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Embeddings of CLIP's windows and then of T5's tokens (B, L, D); pooled ones (B, P) of the first window."""
        windows = self._encode_windows(prompts)
        # The pipeline puts T5's tokens behind those of CLIP; T5 has read the whole prompt each time.
        halves = [
            each.hidden_states.tensor_split([each.hidden_states.shape[1] - self.text_tokens], 1) for each in windows
        ]
        return TextCondition(torch.cat([*(clip for clip, _ in halves), halves[0][1]], 1), windows[0].added)

    def _encode_windows(self, prompts: Sequence[str]) -> list[TextCondition]:
        """What the pipeline makes of each window of CLIP's, with T5's tokens behind it."""

        def encode() -> TextCondition:
            embeddings, _, pooled, _ = self.pipeline.encode_prompt(
                prompt=list(prompts), prompt_2=None, prompt_3=None, device=self.device,
                do_classifier_free_guidance=False, max_sequence_length=self.text_tokens,
            )  # fmt: skip
            return TextCondition(embeddings.float(), {"pooled_projections": pooled.float()})

        return encode_windows(self.pipeline, _CLIP_TOKENIZERS, self.model.prompt_windows, encode)

    def _tokens_read(self, encoder: str) -> int:
        if encoder == "text_encoder_3":
            return self.text_tokens
        return tokens_read(super()._tokens_read(encoder), self.model.prompt_windows)

    @property
    def text_tokens(self) -> int:
        """Tokens of the T5 encoder; without one, zero vectors that stand for its text."""
        chosen = self.model.max_sequence_length
        return 256 if chosen is None else chosen

    def decode(self, latents: Tensor) -> Tensor:
        """AutoencoderKL in float32, whatever the networks' precision."""
        return self._decoded(latents)

    def _set_grid(self, scheduler: Any, num_inference_steps: int) -> None:
        options = {}
        if scheduler.config.use_dynamic_shifting:
            options["mu"] = self._shift(scheduler.config)
        scheduler.set_timesteps(num_inference_steps, **options)

    def _shift(self, config: Any) -> float:
        """The shift's logarithm for this size, by diffusers' own rule and its defaults for this pipeline."""
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        patch = self._size_multiple()
        return float(
            calculate_shift(
                (self.size[0] // patch) * (self.size[1] // patch),
                config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5), config.get("max_shift", 1.16),
            )
        )  # fmt: skip

    def _call(self, prompt: Mapping[str, Any], guidance_scale: float) -> dict[str, Any]:
        return {"guidance_scale": guidance_scale, "max_sequence_length": self.text_tokens}

    @classmethod
    def documented_call(cls, model: Model, guidance_scale: float) -> dict[str, Any]:
        """With the number of T5's tokens where the recipe chose one."""
        tokens = {} if model.max_sequence_length is None else {"max_sequence_length": model.max_sequence_length}
        return super().documented_call(model, guidance_scale) | tokens

    def blank_condition(self, device: str) -> TextCondition:
        """Shapes of one prompt's condition."""
        config = self.denoiser.config
        return TextCondition(
            torch.empty(
                1, 77 * self.model.prompt_windows + self.text_tokens, config.joint_attention_dim, device=device
            ),
            {"pooled_projections": torch.empty(1, config.pooled_projection_dim, device=device)},
        )
