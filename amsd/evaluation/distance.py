"""Distance between two sets of images, by their embeddings: KID and FID with an error over prompts.

Two models' images of the same P prompts, S samples each, are P independent clusters, not P S independent images. KID
therefore leaves out every pair within a prompt, which also removes pairs that share their noise, and both distances
get their standard error from a jackknife over prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amsd.training.processes import gather, shard

VERSION = 1
"""Raised whenever the same embeddings would give another distance."""

_KERNEL_ENTRIES = 2**23
"""Entries of the kernel that are held at once: 64 MiB in float64."""

MIN_PROMPTS = 3
"""KID without one prompt still needs a pair of prompts."""


def kid(images: Tensor, base: Tensor) -> Tensor:
    """KID of embeddings (P, S, D) to the base's (P, S, D), as per-prompt values (P,), float64, whose mean it is.

    Squared maximum mean discrepancy with the kernel k(x, y) = (x.y / D + 1)^3 (Binkowski et al. 2018, section 3), as
    the U-statistic over pairs of prompts p != q of

        h(p, q) = mean over samples of k(x_p, x_q) + k(y_p, y_q) - k(x_p, y_q) - k(y_p, x_q).

    It is unbiased for the distance between the two models' images over the law of the prompts; it may be below zero.
    Memory: a strip of the kernel, at most `_KERNEL_ENTRIES`; time: O((P S)^2 D).

    Raises:
        ValueError: the shapes differ, or there are fewer than `MIN_PROMPTS` prompts.
    """
    _check(images, base)
    x, y = images.double(), base.double()
    crossed = _cells(x, y)
    pairs = _cells(x, x) + _cells(y, y) - crossed - crossed.T
    prompts = len(pairs)
    rows = pairs.sum(1) - pairs.diagonal()
    total = rows.sum()
    without = (total - 2 * rows) / ((prompts - 1) * (prompts - 2))
    return jackknife(total / (prompts * (prompts - 1)), without)


def fid(images: Tensor, base: Tensor) -> Tensor:
    """FID of embeddings (P, S, D) to the base's (P, S, D), as per-prompt values (P,), float64, whose mean it is.

    |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) of the Gaussians fitted to all images (Heusel et al. 2017,
    equation 6). It is biased upwards by a finite number of images: compare only values of equal numbers.
    Memory: O(D^2); time: O(P D^3), shared among the processes of a run: every one calls this, with the same embeddings.

    Raises:
        ValueError: the shapes differ, or there are fewer than `MIN_PROMPTS` prompts.
    """
    _check(images, base)
    center = base.double().mean((0, 1))  # no distance depends on it, and sums of squares stay accurate
    x, y = images.double() - center, base.double() - center
    all_x, all_y = _Sums.of(x.flatten(0, 1)), _Sums.of(y.flatten(0, 1))

    def apart_from(prompt: int | None) -> float:
        if prompt is None:
            return float(_frechet(all_x, all_y))
        return float(_frechet(all_x.without(x[prompt]), all_y.without(y[prompt])))

    cases = [None, *range(len(x))]
    value, *without = gather([apart_from(prompt) for prompt in shard(cases)])
    return jackknife(torch.tensor(value, dtype=torch.float64), torch.tensor(without, dtype=torch.float64))


def coordinate_scale(base: Tensor) -> float:
    """Factor that brings embeddings like the base's (P, S, D) to coordinates of mean square 1.

    KID's kernel was made for coordinates of that order. CLIP and DreamSim give unit vectors, whose x.y / D is at most
    1 / D: without the factor (sqrt(D) for them) the kernel is linear and sees nothing but means.
    """
    return float(base.double().square().mean().rsqrt())


def jackknife(value: Tensor, without: Tensor) -> Tensor:
    """Per-prompt values (P,) of a statistic from its values without each prompt (P,).

    Their mean is the statistic and their s.d. / sqrt(P) its jackknife standard error (Efron and Stein 1981): they are
    the pseudo-values, shifted where the statistic is not linear. The error is right to first order and too large, by
    up to sqrt(2), for a KID between equal laws, where the first order vanishes.
    """
    return value + (len(without) - 1) * (without.mean() - without)


def _check(images: Tensor, base: Tensor) -> None:
    if images.shape != base.shape or images.ndim != 3:
        raise ValueError(f"expected two equal shapes (P, S, D) but got {tuple(images.shape)} and {tuple(base.shape)}")
    if len(images) < MIN_PROMPTS:
        raise ValueError(f"a distance with its error needs {MIN_PROMPTS} prompts or more but got {len(images)}")


def _cells(x: Tensor, y: Tensor) -> Tensor:
    """Mean kernel (P, P) between the samples of each two prompts of x and y, both (P, S, D)."""
    (prompts, samples, dimension), columns = x.shape, y.flatten(0, 1)
    strip = max(1, _KERNEL_ENTRIES // (samples * len(columns)))
    cells = []
    for rows in x.split(strip):
        kernel = (rows.flatten(0, 1) @ columns.T / dimension + 1) ** 3
        cells.append(kernel.unflatten(1, (prompts, samples)).unflatten(0, (len(rows), samples)).mean((1, 3)))
    return torch.cat(cells)


@dataclass(frozen=True)
class _Sums:
    """Sums over embeddings, from which one prompt's can be taken away again."""

    count: int
    total: Tensor
    """(D,)"""
    products: Tensor
    """x^T x, (D, D)."""

    @classmethod
    def of(cls, embeddings: Tensor) -> _Sums:
        """Of embeddings (n, D), float64."""
        return cls(len(embeddings), embeddings.sum(0), embeddings.T @ embeddings)

    def without(self, embeddings: Tensor) -> _Sums:
        """Of all but these embeddings (n, D)."""
        gone = _Sums.of(embeddings)
        return _Sums(self.count - gone.count, self.total - gone.total, self.products - gone.products)

    def gaussian(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D)."""
        mean = self.total / self.count
        return mean, (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)


def _frechet(x: _Sums, y: _Sums) -> Tensor:
    """Squared Frechet distance of two Gaussian fits; tr (A B)^(1/2) by the eigenvalues of A^(1/2) B A^(1/2)."""
    (x_mean, x_covariance), (y_mean, y_covariance) = x.gaussian(), y.gaussian()
    values, vectors = torch.linalg.eigh(x_covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ y_covariance @ root).clamp(min=0).sqrt().sum()
    distance: Tensor = (x_mean - y_mean).square().sum() + x_covariance.trace() + y_covariance.trace() - 2 * mixed
    return distance
