"""Networks in training with their moving average, and the loop that the UNet and the transformer share."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amsd.shapes.captions import COLORS, FORMS, NOTHING, SHAPES, Attributes

log = logging.getLogger(__name__)

CAPTION_DROPOUT = 0.15
WORD_DROPOUT = (0.15, 0.1, 0.15)
"""Chance that a caption leaves color, shape or size open: words learned on their own combine in new ways."""
EMA_DECAY = 0.999

Curve = list[tuple[int, float]]


class CaptionTable:
    """Every caption, complete or with words left out; the last one is empty."""

    def __init__(self) -> None:
        colors, shapes = [*COLORS, None], [*SHAPES, None]
        forms = [*((form,) for form in FORMS), FORMS[:2]]
        rows = [Attributes(color, shape, form) for color in colors for shape in shapes for form in forms]
        self.captions = [attributes.caption() for attributes in [*rows, NOTHING]]

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Rows (B,) of captions for labels (B, 3), words and whole captions left out at random."""
        chance = torch.rand(labels.shape[0], 4, generator=generator)
        color, shape, form = labels.unbind(1)
        color = torch.where(chance[:, 0] < WORD_DROPOUT[0], len(COLORS), color)
        shape = torch.where(chance[:, 1] < WORD_DROPOUT[1], len(SHAPES), shape)
        single = form != FORMS.index("two")
        form = torch.where((chance[:, 2] < WORD_DROPOUT[2]) & single, len(FORMS), form)
        rows = (color * (len(SHAPES) + 1) + shape) * (len(FORMS) + 1) + form
        return torch.where(chance[:, 3] < CAPTION_DROPOUT, len(self.captions) - 1, rows)


@dataclass
class Student:
    """Networks by name, and the exponential moving average of all their parameters in one fixed order."""

    networks: dict[str, nn.Module]
    average: list[Tensor]

    @classmethod
    def fresh(cls, networks: Mapping[str, nn.Module]) -> "Student":
        """Untrained networks; the average starts at their values."""
        student = cls(dict(networks), [])
        student.average = [parameter.detach().clone() for parameter in student.parameters()]
        return student

    def parameters(self) -> list[Tensor]:
        """Parameters of all networks."""
        return [parameter for network in self.networks.values() for parameter in network.parameters()]

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """One step of the moving average, with a warm-up that forgets the first steps."""
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters()], 1 - decay)

    @torch.no_grad()
    def averaged_into(self, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Untrained networks of the same names, filled with the averaged parameters."""
        copy = Student(dict(networks), [])
        for target, value in zip(copy.parameters(), self.average, strict=True):
            target.copy_(value)
        return copy.networks


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 200 steps, constant, cosine to 3% over the last 40%.

    Before that tail the rate does not depend on `steps`: a run may be stopped and go on with another number of steps,
    and equals one that was started with that number.
    """
    tail = max(0.0, (step - 0.6 * steps) / (0.4 * steps))
    return peak * min(1.0, step / 200) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(tail, 1.0))))


def fit(
    student: Student, loss_of: Callable[[torch.Generator], Tensor], state_path: Path, *, steps: int, seed: int,
    peak: float, every: int, snapshot: Callable[[Student, int], None],
) -> dict[str, Any]:  # fmt: skip
    """Train for `steps` updates, going on from `state_path` where it exists; `snapshot` is called every `every` steps.

    Each step draws from a generator seeded by (seed, step): a continued run sees the batches of an unbroken one.
    """
    optimizer = torch.optim.AdamW(student.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)
    start, curve = _restore(state_path, student, optimizer)
    total, since, clock = 0.0, 0, time.monotonic()
    for step in range(start + 1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss = loss_of(torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        student.update_average(step)
        total, since = total + loss.item(), since + 1
        if step % 100 == 0 or step == steps:
            curve.append((step, round(total / since, 5)))
            pace = (time.monotonic() - clock) / since
            log.info("step %d/%d loss %.5f, %.3f s per step", step, steps, total / since, pace)
            total, since, clock = 0.0, 0, time.monotonic()
        if step % every == 0 or step == steps:
            _save(state_path, student, optimizer, step, curve)
            snapshot(student, step)
    return {"curve": curve, "steps": steps}


def _save(path: Path, student: Student, optimizer: torch.optim.Optimizer, step: int, curve: Curve) -> None:
    networks = {name: network.state_dict() for name, network in student.networks.items()}
    state = {
        "step": step, "curve": curve, "average": student.average, "optimizer": optimizer.state_dict(),
        "networks": networks,
    }  # fmt: skip
    aside = path.with_suffix(".new")
    torch.save(state, aside)
    aside.replace(path)


def _restore(path: Path, student: Student, optimizer: torch.optim.Optimizer) -> tuple[int, Curve]:
    if not path.exists():
        return 0, []
    state = torch.load(path, weights_only=True, map_location=student.average[0].device)
    for name, network in student.networks.items():
        network.load_state_dict(state["networks"][name])
    student.average = list(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("going on from step %d of %s", state["step"], path)
    return int(state["step"]), [tuple(point) for point in state["curve"]]
