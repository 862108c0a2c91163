"""The folder of results: where it is, how large it gets, who may write."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from amsd.evaluation import cache as module
from amsd.evaluation.cache import Cache, default_folder


def open_cache(folder: Path) -> Cache:
    def damaged(file: Path, reason: str) -> None:
        raise AssertionError(f"{file}: {reason}")

    return Cache(folder, damaged)


def write_many(folder: Path, seed: int) -> None:
    cache = open_cache(folder)
    for round_ in range(20):
        cache.keep_values("shared", (1.0, 2.0), {"writer": seed, "round": round_})
        cache.keep_pictures("shared", torch.full((2, 1, 3, 4, 4), 7, dtype=torch.uint8))
        assert cache.values("shared", 2) == (1.0, 2.0)
        assert cache.pictures("shared", 2, 1) is not None


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMSD_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "evaluation"
    monkeypatch.delenv("AMSD_CACHE")
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "amsd" / "evaluation"
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert default_folder() == Path.home() / "Library" / "Caches" / "amsd" / "evaluation"


def test_a_folder_that_is_closed_is_said_in_the_same_words_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = []
    cache = Cache(tmp_path / "file", lambda place, reason: said.append((place, reason)))
    for key in ("a", "b"):
        assert cache.values(key, 1) is None
        cache.keep_values(key, (1.0,), {})
        cache.keep_pictures(key, torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8))
    assert len(set(said)) == 1
    assert said[0][0] == tmp_path / "file"
    assert "AMSD_CACHE" in said[0][1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who owns nothing")
def test_what_may_not_be_read_counts_as_absent(tmp_path: Path) -> None:
    open_cache(tmp_path).keep_values("a", (1.0,), {})
    said = []
    os.seteuid(65534)  # the folders of pytest are closed to others
    try:
        cache = Cache(tmp_path, lambda place, reason: said.append(f"{place}: {reason}"))
        assert cache.values("a", 1) is None
        assert cache.pictures("a", 1, 1) is None
    finally:
        os.seteuid(0)
    assert "Permission denied" in said[0]
    assert len(set(said)) == 1


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("AMSD_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module.Path, "home", home)
    assert default_folder().is_relative_to(module.tempfile.gettempdir())


def test_values_come_back_exactly(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    values = (0.1 + 0.2, 1e-300, -3.0)
    cache.keep_values("key", values, {})
    assert cache.values("key", 3) == values
    assert cache.values("another", 3) is None


def test_concurrent_writers_leave_whole_files(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        for done in [pool.submit(write_many, tmp_path, seed) for seed in range(3)]:
            done.result()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["shared.json", "shared.safetensors"]


def test_a_file_that_is_trimmed_while_it_is_read_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, embeddings = open_cache(tmp_path), torch.rand(3, 2, 4)
    cache.keep_embeddings("key", embeddings)
    (file,) = (tmp_path / "embeddings").iterdir()
    checksum = module._checksum

    def trimmed(tensor: torch.Tensor) -> str:
        file.unlink()
        return checksum(tensor)

    monkeypatch.setattr(module, "_checksum", trimmed)
    found = cache.embeddings("key", 3, 2)
    assert found is not None
    assert torch.equal(found, embeddings)
    assert not file.exists()


def test_embeddings_that_are_not_finite_are_damaged(tmp_path: Path) -> None:
    said: list[str] = []
    cache = Cache(tmp_path, lambda file, reason: said.append(reason))
    cache.keep_embeddings("key", torch.tensor([[[1.0, torch.nan]]]))
    assert cache.embeddings("key", 1, 1) is None
    assert said == ["its values are not all finite; computed again"]


def test_the_least_recently_used_pictures_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(tmp_path)
    pictures = torch.zeros(1, 1, 3, 16, 16, dtype=torch.uint8)
    for age, name in enumerate(["new", "old", "oldest"]):
        cache.keep_pictures(name, pictures)
        os.utime(tmp_path / "pictures" / f"{name}.safetensors", (1000 - age, 1000 - age))
    assert cache.pictures("oldest", 1, 1) is not None  # now the most recently used one
    monkeypatch.setattr(module, "_KIND_BYTES", 3000)
    cache.keep_pictures("newest", pictures)
    left = {name for name in ("new", "old", "oldest", "newest") if cache.pictures(name, 1, 1) is not None}
    assert "old" not in left
