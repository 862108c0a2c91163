"""KID and FID against closed forms, brute force and the spread over repetitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from scipy.linalg import sqrtm
from torch import Tensor

from amsd.evaluation import distance
from amsd.evaluation.distance import coordinate_scale, fid, jackknife, kid


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clustered(seed: int, prompts: int = 20, samples: int = 4, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Two models' embeddings (P, S, 1) with s.d. 1: prompts differ, and both models draw from partly the same noise."""
    center = math.sqrt(0.5) * normal(prompts, 1, 1, seed=3 * seed)
    common = 0.6 * normal(prompts, samples, 1, seed=3 * seed + 1)
    own = math.sqrt(0.5 - 0.36) * normal(2, prompts, samples, 1, seed=3 * seed + 2)
    return center + common + own[0] + shift, center + common + own[1]


def repeated(count: int, **options: float) -> tuple[Tensor, Tensor]:
    """KID and its standard error (count,) over independent repetitions."""
    values = [kid(*clustered(seed, **options)) for seed in range(count)]  # type: ignore[arg-type]
    means = torch.stack([each.mean() for each in values])
    return means, torch.stack([each.std() / math.sqrt(len(each)) for each in values])


def test_kid_is_the_mean_over_pairs_of_prompts() -> None:
    x, y = normal(4, 2, 3, seed=1), 0.5 + normal(4, 2, 3, seed=2)

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    total = 0.0
    for p, q in product(range(4), repeat=2):
        for s, t in product(range(2), repeat=2) if p != q else ():
            total += kernel(x[p, s], x[q, t]) + kernel(y[p, s], y[q, t])
            total -= kernel(x[p, s], y[q, t]) + kernel(y[p, s], x[q, t])
    assert kid(x, y).mean().item() == pytest.approx(total / (4 * 12), rel=1e-12)


def test_kid_of_the_same_law_is_zero_over_repetitions_though_prompts_and_noise_are_shared() -> None:
    means, _ = repeated(2000)
    error = means.std() / math.sqrt(len(means))
    assert abs(means.mean()) < 3.5 * error
    # The usual estimator takes all pairs of images for independent: the shared noise makes it far too low.
    usual = []
    for seed in range(300):
        x, y = (each.flatten() for each in clustered(seed))
        same, crossed = [(torch.outer(a, a) + 1) ** 3 for a in (x, y)], (torch.outer(x, y) + 1) ** 3
        pairs = len(x) * (len(x) - 1)
        usual.append(sum((each.sum() - each.trace()) / pairs for each in same) - 2 * crossed.mean())
    biased = torch.stack(usual)
    assert biased.mean() < -10 * biased.std() / math.sqrt(len(biased))


def test_kid_of_two_gaussians_has_the_closed_form() -> None:
    """With D = 1, (xy + 1)^3 = sum_j C(3, j) x^j y^j, so MMD^2 = sum_j C(3, j) (E x^j - E y^j)^2."""
    shift = 0.5
    means, _ = repeated(2000, shift=shift)
    raw = [shift, 1 + shift**2 - 1, shift**3 + 3 * shift]  # E x^j - E y^j of N(m, 1) and N(0, 1)
    expected = sum(math.comb(3, j) * raw[j - 1] ** 2 for j in (1, 2, 3))
    assert abs(means.mean() - expected) < 3.5 * means.std() / math.sqrt(len(means))


def test_the_standard_error_is_the_spread_over_repetitions() -> None:
    means, errors = repeated(1000, shift=0.5, prompts=40)
    assert errors.square().mean().sqrt() == pytest.approx(float(means.std()), rel=0.15)
    means, errors = repeated(1000, prompts=40)
    ratio = float(errors.square().mean().sqrt() / means.std())
    assert ratio == pytest.approx(math.sqrt(2), rel=0.15), "degenerate: the first-order jackknife doubles the variance"


@pytest.mark.parametrize("formula", [kid, fid])
def test_values_per_prompt_are_the_jackknifes(formula: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, y = normal(7, 5, 4, seed=1) + normal(7, 1, 4, seed=5), 0.3 + 1.4 * normal(7, 5, 4, seed=2)
    found = formula(x, y)
    kept = [[q for q in range(7) if q != p] for p in range(7)]
    without = torch.stack([formula(x[rest], y[rest]).mean() for rest in kept])
    assert found.tolist() == pytest.approx(jackknife(found.mean(), without).tolist(), rel=1e-9)
    error = found.std() / math.sqrt(7)
    tukey = math.sqrt(6 / 7 * float((without - without.mean()).square().sum()))
    assert float(error) == pytest.approx(tukey, rel=1e-9)


def with_moments(mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """Embeddings (6, 4, D) whose sample mean and covariance are exactly these."""
    flat = normal(24, len(mean), seed=seed)
    flat = flat - flat.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(flat.T.cov()), flat.T, upper=False)
    return (mean[:, None] + torch.linalg.cholesky(covariance) @ white).T.unflatten(0, (6, 4))


def test_fid_of_gaussians_with_known_moments() -> None:
    a, b = (spread @ spread.T + 0.1 * torch.eye(3) for spread in (normal(3, 3, seed=3), normal(3, 3, seed=4)))
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x, y = with_moments(mean, a, 1), with_moments(torch.zeros(3, dtype=torch.float64), b, 2)
    root = sqrtm((a @ b).numpy()).real
    expected = float(mean @ mean) + float((a + b).trace()) - 2 * float(root.trace())
    assert float(fid(x, y).mean()) == pytest.approx(expected, rel=1e-9)
    diagonal = torch.diag(torch.tensor([4.0, 9.0, 0.25], dtype=torch.float64))
    scaled = fid(with_moments(mean, diagonal, 1), with_moments(mean, torch.eye(3, dtype=torch.float64), 2))
    assert float(scaled.mean()) == pytest.approx((2 - 1) ** 2 + (3 - 1) ** 2 + (0.5 - 1) ** 2, rel=1e-9)


def fid_of_one_process(rank: int, processes: int, meeting: str) -> tuple[list[float], int]:
    """What this process gets, and how many distances it worked out for it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    counted, frechet = [], distance._frechet
    distance._frechet = lambda x, y: counted.append(1) or frechet(x, y)  # type: ignore[func-returns-value]
    try:
        return fid(*unequal()).tolist(), len(counted)
    finally:
        dist.destroy_process_group()


def unequal() -> tuple[Tensor, Tensor]:
    return normal(7, 3, 4, seed=1), 0.3 + 1.4 * normal(7, 3, 4, seed=2)


@pytest.mark.parametrize("processes", [3, 9])
def test_processes_share_the_work_of_fid_and_get_the_same_numbers(processes: int, tmp_path: Path) -> None:
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        meeting = str(tmp_path / "meeting")
        running = [pool.submit(fid_of_one_process, rank, processes, meeting) for rank in range(processes)]
        found = [each.result(timeout=120) for each in running]
    expected = fid(*unequal()).tolist()
    assert all(values == expected for values, _ in found)
    shares = [share for _, share in found]
    assert sum(shares) == 8  # one with all prompts, and one without each of 7
    assert max(shares) - min(shares) <= 1


def test_fid_of_a_constant_dimension_and_far_from_the_origin() -> None:
    x, y = normal(5, 4, 3, seed=1), normal(5, 4, 3, seed=2)
    x[..., 2] = y[..., 2] = 1.0
    expected = fid(x[..., :2], y[..., :2])
    # A singular covariance has eigenvalues of rounding's size, of which roots are taken.
    assert fid(x, y).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert fid(x + 1e4, y + 1e4).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("formula", [kid, fid])
def test_the_same_images_have_no_distance(formula: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = normal(5, 3, 4)
    assert formula(x, x).abs().max() < 1e-7


def test_strips_of_the_kernel_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(9, 3, 5, seed=1), normal(9, 3, 5, seed=2)
    whole = kid(x, y)
    for entries in (1, 3 * 27 * 4):
        monkeypatch.setattr(distance, "_KERNEL_ENTRIES", entries)
        assert kid(x, y).tolist() == pytest.approx(whole.tolist(), rel=1e-12)


def test_coordinates_are_brought_to_the_size_the_kernel_was_made_for() -> None:
    unit = torch.nn.functional.normalize(normal(4, 3, 64), dim=-1)
    assert coordinate_scale(unit) == pytest.approx(8.0)
    assert coordinate_scale(5 * unit) == pytest.approx(8 / 5)


@pytest.mark.parametrize("formula", [kid, fid])
def test_what_has_no_distance_is_refused(formula: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"two equal shapes .* \(4, 2, 3\) and \(4, 3, 3\)"):
        formula(normal(4, 2, 3), normal(4, 3, 3))
    with pytest.raises(ValueError, match="3 prompts or more but got 2"):
        formula(normal(2, 2, 3), normal(2, 2, 3))
