"""Fine-tuned and base network behind one interface: `full`, `lora` and `offset` parameterizations."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from amsd.diffusion.adapters import Adapter
from amsd.diffusion.guidance import TextCondition
from amsd.recipe import Model

ADAPTER_FILE = "adapter_model.safetensors"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Policy(ABC):
    """Two noise predictors of one family: the fine-tuned one, and the base it started from.

    After construction both are the same function. Only `trainable` parameters ever change, and they are float32.
    """

    def __init__(self, adapter: Adapter, model: Model) -> None:
        self.adapter = adapter
        self.model = model
        self.dtype = _DTYPES[model.precision]
        pipeline = adapter.pipeline
        for module in (pipeline.vae, pipeline.unet, *_text_encoders(pipeline)):
            module.requires_grad_(False).eval()
        pipeline.vae.to(torch.float32)
        for module in _text_encoders(pipeline):
            module.to(self.dtype)

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline; `sampling` and `sampling_base` say which network it holds."""
        return self.adapter.pipeline

    @property
    @abstractmethod
    def networks(self) -> list[nn.Module]:
        """Every denoising module, for moving, checkpointing and compiling."""

    @property
    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name, float32."""

    @abstractmethod
    def finetuned(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Raw output (B, ...) of the fine-tuned network."""

    @abstractmethod
    def base(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Raw output (B, ...) of the base network."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the fine-tuned weights in the form that plain diffusers loads."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `save` wrote into the trained parameters."""

    @abstractmethod
    def _sampling_module(self, base: bool) -> nn.Module: ...

    @final
    @contextmanager
    def sampling(self, base: bool = False) -> Iterator[Any]:
        """The diffusers pipeline holding the fine-tuned (or the base) network, without gradients."""
        pipeline = self.pipeline
        before = pipeline.unet
        with torch.no_grad(), self.autocast(), self._adapters(enabled=not base):
            pipeline.unet = self._sampling_module(base)
            try:
                yield pipeline
            finally:
                pipeline.unet = before

    @final
    def autocast(self) -> torch.autocast:
        """Mixed precision of the networks, off in fp32."""
        device = next(iter(self.trainable.values())).device.type
        return torch.autocast(device, dtype=self.dtype, enabled=self.dtype is not torch.float32)

    @final
    def to(self, device: torch.device) -> None:
        """Move everything."""
        self.pipeline.to(device)
        for network in self.networks:
            network.to(device)

    @contextmanager
    def _adapters(self, enabled: bool) -> Iterator[None]:
        yield


class FullPolicy(Policy):
    """All weights are trained; the base is a frozen copy."""

    def __init__(self, adapter: Adapter, model: Model) -> None:
        super().__init__(adapter, model)
        self._base = _frozen_copy(self.pipeline.unet, self.dtype)
        self._unet = self.pipeline.unet.to(torch.float32).requires_grad_(True)
        self._call, self._call_base = adapter.network(self._unet), adapter.network(self._base)

    @property
    def networks(self) -> list[nn.Module]:
        """Trained network and frozen copy."""
        return [self._unet, self._base]

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Every parameter of the UNet."""
        return dict(self._unet.named_parameters())

    def finetuned(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Output of the trained network."""
        with self.autocast():
            return self._call(x, timesteps, condition)

    def base(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Output of the frozen copy."""
        with self.autocast():
            return self._call_base(x, timesteps, condition)

    def save(self, folder: Path) -> None:
        """Write `unet/`."""
        self._unet.save_pretrained(folder / "unet")

    def load(self, folder: Path) -> None:
        """Read `unet/`."""
        self._unet.load_state_dict(_unet_state(folder / "unet"))

    def _sampling_module(self, base: bool) -> nn.Module:
        module: nn.Module = self._base if base else self._unet
        return module


class LoraPolicy(Policy):
    """One network; low-rank adapters are trained, and switched off for the base.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
    """

    def __init__(self, adapter: Adapter, model: Model) -> None:
        from peft import LoraConfig

        super().__init__(adapter, model)
        self._unet = self.pipeline.unet.to(self.dtype)
        lora = model.lora
        self._unet.add_adapter(
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.rank if lora.alpha is None else lora.alpha,
                target_modules=list(lora.targets),
                init_lora_weights=True,
            )
        )
        for parameter in self.trainable.values():
            parameter.data = parameter.data.float()
        self._call = adapter.network(self._unet)

    @property
    def networks(self) -> list[nn.Module]:
        """The one network."""
        return [self._unet]

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapters' parameters."""
        return {name: value for name, value in self._unet.named_parameters() if "lora_" in name}

    def finetuned(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Output with adapters on."""
        with self.autocast():
            return self._call(x, timesteps, condition)

    def base(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Output with adapters off: bit for bit the pretrained network's."""
        with self.autocast(), self._adapters(enabled=False):
            return self._call(x, timesteps, condition)

    def save(self, folder: Path) -> None:
        """Write `adapter_model.safetensors`, rank and alpha in its metadata, for diffusers' LoRA loader."""
        from peft import get_peft_model_state_dict

        self.pipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(self._unet),
            weight_name=ADAPTER_FILE,
            unet_lora_adapter_metadata=self._unet.peft_config["default"].to_dict(),
        )

    def load(self, folder: Path) -> None:
        """Read `adapter_model.safetensors`."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        state = {name.removeprefix("unet."): value for name, value in load_file(folder / ADAPTER_FILE).items()}
        outcome = set_peft_model_state_dict(self._unet, state)
        if outcome is not None and outcome.unexpected_keys:
            raise ValueError(f"{folder / ADAPTER_FILE}: unknown keys {outcome.unexpected_keys[:3]}")

    def _sampling_module(self, base: bool) -> nn.Module:
        module: nn.Module = self._unet
        return module

    @contextmanager
    def _adapters(self, enabled: bool) -> Iterator[None]:
        if enabled:
            yield
            return
        self._unet.disable_adapters()
        try:
            yield
        finally:
            self._unet.enable_adapters()


class OffsetPolicy(Policy):
    """Base plus a learned difference: a copy of the UNet whose output layer starts at zero."""

    def __init__(self, adapter: Adapter, model: Model) -> None:
        super().__init__(adapter, model)
        self._base = self.pipeline.unet
        self._offset = copy.deepcopy(self._base).to(torch.float32).requires_grad_(True)
        self._base.to(self.dtype)
        nn.init.zeros_(self._offset.conv_out.weight)
        nn.init.zeros_(self._offset.conv_out.bias)
        self._sum = SummedUNet(self._base, self._offset)
        self._call_base, self._call_offset = adapter.network(self._base), adapter.network(self._offset)

    @property
    def networks(self) -> list[nn.Module]:
        """Base and difference."""
        return [self._base, self._offset]

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Every parameter of the difference."""
        return dict(self._offset.named_parameters())

    def finetuned(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Output of the base plus the difference."""
        with self.autocast():
            return self._call_base(x, timesteps, condition) + self._call_offset(x, timesteps, condition)

    def base(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Output of the base."""
        with self.autocast():
            return self._call_base(x, timesteps, condition)

    def save(self, folder: Path) -> None:
        """Write `offset/`, a UNet whose output is added to the base's (plain diffusers has no slot for it)."""
        self._offset.save_pretrained(folder / "offset")

    def load(self, folder: Path) -> None:
        """Read `offset/`."""
        self._offset.load_state_dict(_unet_state(folder / "offset"))

    def _sampling_module(self, base: bool) -> nn.Module:
        return self._base if base else self._sum


class SummedUNet(nn.Module):
    """Two UNets whose outputs are added, with what a diffusers pipeline asks of its UNet."""

    def __init__(self, base: nn.Module, offset: nn.Module) -> None:
        super().__init__()
        self.base, self.offset = base, offset

    @property
    def config(self) -> Any:
        """Configuration of the base."""
        return self.base.config

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the base's weights."""
        return next(self.base.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the base's weights."""
        return next(self.base.parameters()).device

    @property
    def add_embedding(self) -> Any:
        """SDXL's embedding of extra conditions, whose width the pipeline asks for."""
        return self.base.add_embedding

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        """Sum of both outputs, as a tuple (`return_dict` is ignored: pipelines ask for a tuple)."""
        kwargs["return_dict"] = False
        return (self.base(*args, **kwargs)[0] + self.offset(*args, **kwargs)[0],)


_POLICIES: dict[str, type[Policy]] = {"full": FullPolicy, "lora": LoraPolicy, "offset": OffsetPolicy}


def build_policy(adapter: Adapter, model: Model) -> Policy:
    """The policy that `model.parameterization` names, unchanged from the base."""
    return _POLICIES[model.parameterization](adapter, model)


def _frozen_copy(unet: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with in `dtype` what autocast casts at every call anyway.

    Normalisation weights stay float32 as in the trained network: rounded, they would make the base another function.
    """
    base = copy.deepcopy(unet)
    for module in base.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
    return base


def _unet_state(folder: Path) -> dict[str, Tensor]:
    from diffusers import UNet2DConditionModel

    state: dict[str, Tensor] = UNet2DConditionModel.from_pretrained(
        folder, use_safetensors=True, local_files_only=True
    ).state_dict()
    return state


def _text_encoders(pipeline: Any) -> list[nn.Module]:
    names = ("text_encoder", "text_encoder_2")
    return [pipeline.components[name] for name in names if pipeline.components.get(name) is not None]
