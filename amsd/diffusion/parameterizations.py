"""The three parameterizations of a policy: `full`, `lora` and `offset`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amsd.diffusion.families.base import Family
from amsd.diffusion.folder import network_part
from amsd.diffusion.guidance import Network, TextCondition
from amsd.diffusion.held import HalfCopy, HeldCopy, MergedCopy, compute_in
from amsd.diffusion.lora_file import write_safetensors
from amsd.diffusion.lora_layers import adapted_layers
from amsd.diffusion.parts import load_network
from amsd.diffusion.policy import Policy
from amsd.diffusion.quantization import quantize
from amsd.diffusion.sharding import gathered, load_state, network_as_it_is
from amsd.files import Writes, write_nothing
from amsd.reading import reading, require_same, require_whole
from amsd.recipe import Model

ADAPTER_FILE = "adapter_model.safetensors"


class NetworkPolicy(Policy):
    """Every weight of one network is trained, in a folder of its own, beside a frozen base."""

    def __init__(self, family: Family, model: Model, network: nn.Module, base: nn.Module, folder: str) -> None:
        super().__init__(family, model)
        self._network = network.to(torch.float32).requires_grad_(True).eval()
        self._base = compute_in(base, self.dtype).requires_grad_(False).eval()
        self._folder = folder
        self._call, self._call_base = family.network(network), family.network(base)

    @property
    def networks(self) -> list[nn.Module]:
        """Trained network and base."""
        return [self._network, self._base]

    @property
    def trained_network(self) -> nn.Module:
        """The network that is not the base."""
        return self._network

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Every parameter of the network."""
        return dict(self._network.named_parameters())

    def base(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Output of the base."""
        return self._call_base(x, timesteps, condition)

    def as_it_is(self) -> Writes:
        """The network's folder."""
        write = network_as_it_is(self._network)
        return lambda folder: write(folder / self._folder)

    def load(self, folder: Path) -> None:
        """Read the network's folder."""
        _restore(self._network, folder / self._folder)

    def _new_copy(self) -> HeldCopy | None:
        return None if self.dtype is torch.float32 else HalfCopy(self._network, self.dtype)

    @property
    def _base_module(self) -> nn.Module:
        return self._base


class FullPolicy(NetworkPolicy):
    """All weights are trained; the base is a frozen copy. Its folder has the network's name in the pipeline."""

    def __init__(self, family: Family, model: Model) -> None:
        super().__init__(family, model, family.denoiser, copy.deepcopy(family.denoiser), family.denoiser_name)

    def _trained_output(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        return self._call(x, timesteps, condition)

    def _call_of(self, copied: nn.Module) -> Network:
        return self.family.network(copied)

    def _sampling_module(self, trained: nn.Module) -> nn.Module:
        return trained


class LoraPolicy(Policy):
    """One network; low-rank adapters are trained, and switched off for the base.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
    """

    def __init__(self, family: Family, model: Model) -> None:
        from peft import LoraConfig

        super().__init__(family, model)
        self._network = compute_in(family.denoiser, self.dtype)
        if model.quantization is not None:
            quantize(self._network, self.dtype)
        lora = model.lora
        adapted_layers(self._network, lora.targets)
        self._network.add_adapter(
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.rank if lora.alpha is None else lora.alpha,
                target_modules=list(lora.targets),
                init_lora_weights=True,
            )
        )
        for parameter in self.trainable.values():
            parameter.data = parameter.data.float()
        self._call = family.network(self._network)
        self._without_adapters = False

    @property
    def networks(self) -> list[nn.Module]:
        """The one network."""
        return [self._network]

    @property
    def trained_network(self) -> nn.Module:
        """The one network, which is the base too while the adapters are off."""
        network: nn.Module = self._network
        return network

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapters' parameters."""
        return {name: value for name, value in self._network.named_parameters() if "lora_" in name}

    def _trained_output(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        return self._call(x, timesteps, condition)

    def _call_of(self, copied: nn.Module) -> Network:
        return self.family.network(copied)

    def _new_copy(self) -> HeldCopy | None:
        if self.dtype is not torch.float32:
            return HalfCopy(self._network, self.dtype)
        # Into a weight of four bits nothing can be merged.
        return None if self.model.quantization else MergedCopy(self._network)

    def base(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Output with adapters off: bit for bit the pretrained network's."""
        with self.only_base():
            return self._call(x, timesteps, condition)

    def as_it_is(self) -> Writes:
        """`adapter_model.safetensors`, rank and alpha in its metadata, for diffusers' LoRA loader."""
        from peft import get_peft_model_state_dict

        layers = gathered(get_peft_model_state_dict(self._network))
        metadata = self._network.peft_config["default"].to_dict()
        # A set in no fixed order: equal weights must be equal files, for they are known by their hash.
        metadata["target_modules"] = sorted(metadata["target_modules"])

        def write(folder: Path) -> None:
            self.family.write_lora(folder, ADAPTER_FILE, layers, metadata)
            _rewrite(folder / ADAPTER_FILE)

        return write if layers else write_nothing

    def load(self, folder: Path) -> None:
        """Read `adapter_model.safetensors`."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        prefix = f"{self.family.denoiser_name}."
        file, what = folder / ADAPTER_FILE, f"checkpoint {folder.name}"
        require_whole(file, what)
        with reading(what, file):
            state = {name.removeprefix(prefix): value for name, value in load_file(file).items()}
        require_same(get_peft_model_state_dict(self._network), state, f"{what}: {file}")
        set_peft_model_state_dict(self._network, state)

    def _sampling_module(self, trained: nn.Module) -> nn.Module:
        return trained

    @property
    def _base_module(self) -> nn.Module:
        return self.trained_network

    @contextmanager
    def only_base(self) -> Iterator[None]:
        """Adapters are off inside the block; blocks may be nested."""
        if self._without_adapters:
            yield
            return
        self._network.disable_adapters()
        if self._checkpoints:
            self._network.disable_gradient_checkpointing()
        self._without_adapters = True
        try:
            yield
        finally:
            self._without_adapters = False
            self._network.enable_adapters()
            if self._checkpoints:
                self._network.enable_gradient_checkpointing()


class OffsetPolicy(NetworkPolicy):
    """Base plus a learned difference: a copy of the network whose last layer starts at zero.

    Its folder is `offset/`, a network whose output is added to the base's (plain diffusers has no slot for it).
    """

    def __init__(self, family: Family, model: Model) -> None:
        offset = copy.deepcopy(family.denoiser)
        for name in family.output_layers:
            for parameter in offset.get_submodule(name).parameters():
                nn.init.zeros_(parameter)
        super().__init__(family, model, offset, family.denoiser, "offset")

    def _trained_output(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        return self._call_base(x, timesteps, condition) + self._call(x, timesteps, condition)

    def _call_of(self, copied: nn.Module) -> Network:
        call = self.family.network(copied)
        return lambda x, timesteps, condition: self._call_base(x, timesteps, condition) + call(x, timesteps, condition)

    def _sampling_module(self, trained: nn.Module) -> nn.Module:
        return SummedNetworks(self._base, trained)


class SummedNetworks(nn.Module):
    """Two networks whose outputs are added, with what a diffusers pipeline asks of its network (answered by the base).

    Pipelines ask for `config`, `dtype`, and parts whose width they need.
    """

    def __init__(self, base: nn.Module, offset: nn.Module) -> None:
        super().__init__()
        self.base, self.offset = base, offset

    def __getattr__(self, name: str) -> Any:
        """What the base has under this name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        """Sum of both outputs, as a tuple (`return_dict` is ignored: pipelines ask for a tuple)."""
        kwargs["return_dict"] = False
        return (self.base(*args, **kwargs)[0] + self.offset(*args, **kwargs)[0],)


_POLICIES: dict[str, type[Policy]] = {"full": FullPolicy, "lora": LoraPolicy, "offset": OffsetPolicy}


def build_policy(family: Family, model: Model) -> Policy:
    """The policy that `model.parameterization` names, unchanged from the base."""
    return _POLICIES[model.parameterization](family, model)


def _rewrite(file: Path) -> None:
    """Give a LoRA file the bytes that follow from its content alone."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata()
    write_safetensors(file, load_file(file), metadata)


def _restore(network: nn.Module, folder: Path) -> None:
    """Read a network that `save_pretrained` wrote into one of the same architecture.

    Raises:
        UsageError: a file is damaged, or is not of this architecture.
    """
    what = f"checkpoint {folder.parent.name}"
    state = load_network(network_part(folder, what), what).state_dict()
    require_same(network.state_dict(), state, f"{what}: {folder}")
    load_state(network, state)
