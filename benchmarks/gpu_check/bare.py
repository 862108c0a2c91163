"""Forward passes and products of Stable Diffusion 1.5's UNet alone: what no training loop can beat."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import workbench
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gpu_check.record import Check

Network = Callable[[Tensor], Tensor]
"""Latents (B, 4, S, S) -> prediction of the same shape, under a condition of B rows."""


@dataclass(frozen=True)
class Way:
    """A way to call the network."""

    name: str
    make: Callable[[int], Network]
    """The call for B rows."""
    rows: Sequence[int]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    product: bool = False
    """A product with the Jacobian instead of a forward pass; counts as two."""
    graph: bool = False


def bare(check: Check) -> None:
    """Plain diffusers first, then amsd's own two networks."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    unet = workbench.random_pipeline(check.options.tiny, check.device).unet.requires_grad_(False)
    call = _plain(unet, check, torch.float32)(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(_latents(unet, check, 1, torch.float32))
    check.tflop = counter.get_total_flops() / 1e12
    count = sum(parameter.numel() for parameter in unet.parameters())
    check.say("bare unet", parameters=count, tflop_per_forward=round(check.tflop, 6))
    for way in _plain_ways(unet, check):
        _measure(check, unet, way)
    if check.cuda:
        pure = _plain(_halved(unet, channels_last=True), check, torch.bfloat16)
        torch.backends.cudnn.benchmark = True
        name = "pure bf16, channels_last, cudnn.benchmark"
        _measure(check, unet, Way(name, pure, (10, 32), torch.bfloat16, channels_last=True))
        torch.backends.cudnn.benchmark = False
        name = "pure bf16, channels_last, CUDA graph"
        _measure(check, unet, Way(name, pure, (2, 10, 32), torch.bfloat16, channels_last=True, graph=True))
    _measure_amsd(check, unet)
    what, rate = check.best()
    check.say("bare unet", best={"forward_per_s": rate, "what": what})


def _plain_ways(unet: nn.Module, check: Check) -> list[Way]:
    cuda = check.cuda
    many, few, products = ((2, 10, 32, 64), (10, 32), (5, 16, 32)) if cuda else ((2,), (2,), (2,))
    full, half = torch.float32, torch.bfloat16
    single, pure, last = (
        _plain(network, check, dtype)
        for network, dtype in ((unet, full), (_halved(unet), half), (_halved(unet, channels_last=True), half))
    )
    return [
        Way("fp32 (tf32)", single, few, full),
        Way("fp32 (tf32) vjp", single, products[:1], full, product=True),
        Way("pure bf16", pure, many, half),
        Way("pure bf16, vjp", pure, products, half, product=True),
        Way("bf16 by autocast", _by_autocast(unet, check), few, full),
        Way("pure bf16, channels_last", last, many, half, channels_last=True),
        Way("pure bf16, channels_last, vjp", last, products, half, channels_last=True, product=True),
    ]


def _measure_amsd(check: Check, unet: nn.Module) -> None:
    """The networks of a full policy in bf16, called as the training calls them."""
    many, products = ((2, 10, 32, 64), (5, 16, 32)) if check.cuda else ((2,), (2,))
    for checkpointing in (False, True):
        recipe = workbench.recipe_of(
            {"model": {"precision": "bf16"}, "training": {"gradient_checkpointing": checkpointing}}
        )
        pipeline = workbench.random_pipeline(check.options.tiny, check.device)
        problem, _ = workbench.set_up(recipe, pipeline, check.device)

        def network(which: Callable[..., Callable[[Tensor, int], Tensor]], problem=problem) -> Callable[[int], Network]:  # type: ignore[no-untyped-def]
            def make(rows: int) -> Network:
                with torch.no_grad():
                    predict = which(problem.encode(["a red circle"] * rows), 1.0)
                return lambda x: predict(x, 0)

            return make

        suffix = ", gradient checkpointing" if checkpointing else ""
        if not checkpointing:
            _measure(check, unet, Way("amsd full policy, bf16", network(problem.finetuned), many))
            _measure(check, unet, Way("amsd base, bf16", network(problem.base), many))
        _measure(check, unet, Way(f"amsd base vjp{suffix}", network(problem.base), products, product=True))


def _latents(unet: nn.Module, check: Check, rows: int, dtype: torch.dtype) -> Tensor:
    side = unet.config.sample_size
    return torch.randn(rows, 4, side, side, device=check.device, dtype=dtype)


def _plain(unet: nn.Module, check: Check, dtype: torch.dtype) -> Callable[[int], Network]:
    def make(rows: int) -> Network:
        times = torch.randint(0, 1000, (rows,), device=check.device)
        text = torch.randn(rows, 77, unet.config.cross_attention_dim, device=check.device, dtype=dtype)
        return lambda x: unet(x, times, encoder_hidden_states=text, return_dict=False)[0]

    return make


def _by_autocast(unet: nn.Module, check: Check) -> Callable[[int], Network]:
    """Matrix products in bf16 with weights that are cast already, normalizations in float32."""
    mixed = copy.deepcopy(unet)
    for module in mixed.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)
    plain = _plain(mixed, check, torch.float32)

    def make(rows: int) -> Network:
        network = plain(rows)

        def call(x: Tensor) -> Tensor:
            with torch.autocast(check.device.type, dtype=torch.bfloat16):
                return network(x)

        return call

    return make


def _halved(unet: nn.Module, channels_last: bool = False) -> nn.Module:
    half = copy.deepcopy(unet).to(torch.bfloat16)
    return half.to(memory_format=torch.channels_last) if channels_last else half


def _measure(check: Check, unet: nn.Module, way: Way) -> None:
    for rows in way.rows:
        try:
            _measure_rows(check, unet, way, rows)
        except torch.OutOfMemoryError:
            check.say("bare unet", what=way.name, rows=rows, out_of_memory=True)
            return
        except Exception as error:  # noqa: BLE001 the other ways are still to be measured
            check.say("bare unet", what=way.name, rows=rows, CRASH=f"{type(error).__name__}: {str(error)[:200]}")
            return


def _measure_rows(check: Check, unet: nn.Module, way: Way, rows: int) -> None:
    check.clean()
    network, x = way.make(rows), _latents(unet, check, rows, way.dtype)
    if way.channels_last:
        x = x.to(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.no_grad():
            network(x)

    def product() -> None:
        state = x.detach().requires_grad_(True)
        output = network(state)
        torch.autograd.grad(output, state, torch.ones_like(output))

    work = product if way.product else forward
    seconds = check.seconds(_graphed(work).replay if way.graph else work)
    rate = rows * (2 if way.product else 1) / seconds
    check.bare[way.name, rows] = rate
    check.say(
        "bare unet", what=way.name, rows=rows, ms=round(1e3 * seconds, 2), forwards_per_s=round(rate, 1),
        tflops=round(rate * check.tflop, 3), share_of_bf16_matmul=check.share_of_matrix_rate(rate),
        peak_gib=check.peak(),
    )  # fmt: skip


def _graphed(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph
