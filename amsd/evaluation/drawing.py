"""The pictures of an evaluation: every process draws its share, as many at once as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from amsd.diffusion.families.base import Family
from amsd.diffusion.texts import ReadPrompts
from amsd.errors import Diverged
from amsd.evaluation import protocol
from amsd.evaluation.scorers import Images
from amsd.recipe import Recipe
from amsd.training.chunks import DEFAULT_PICTURES, ChunkSize, in_chunks, picture_size
from amsd.training.processes import gather, interruptible, rank, shard


class Painter:
    """Draws the pictures of a recipe's evaluation prompts."""

    def __init__(self, recipe: Recipe, prompts: Sequence[str], progress: Callable[[str, int, int], None]) -> None:
        """`progress` is told (what, done, total) after every batch, on the main process."""
        self._recipe = recipe
        self._prompts = prompts
        self._progress = progress
        self._size: ChunkSize | None = None

    def draw(self, family: Family, sampler: protocol.Sampler, prompts: int) -> Images:
        """This process's share of the pictures of the first `prompts` prompts.

        Batches are the same at any number of processes, as long as they fit into memory; `evaluation.batch_size =
        "auto"` draws over their borders.

        Raises:
            Diverged: on every process, if an image of any of them is not finite.
            RunError: a single picture does not fit into memory.
        """
        samples, together = self._recipe.evaluation.samples_per_prompt, self._recipe.evaluation.batch_size
        self._size = size = self._size or picture_size(self._recipe, family.device.type != "cpu")
        share = shard(protocol.batches(prompts, samples, DEFAULT_PICTURES if together == "auto" else together))
        pictures: list[Tensor] = []
        failure = ""
        with protocol.sampling(family.pipeline, sampler), interruptible() as look:
            try:
                draw = self._drawing(family, sampler, prompts * samples, sum(map(len, share)), look)
                if together == "auto" and share:
                    parts = in_chunks([index for batch in share for index in batch], size, draw)
                    pictures = list(torch.cat(parts).split([len(batch) for batch in share]))
                else:
                    pictures = [torch.cat(in_chunks(batch, size, draw)) for batch in share]
            except Diverged as error:
                failure = str(error)
        failures = [text for text in gather([failure]) if text]
        if failures:
            raise Diverged(f"{sampler.setting.name}: {failures[0]}")
        return Images(share, pictures, prompts)

    def _drawing(
        self, family: Family, sampler: protocol.Sampler, total: int, own: int, look: Callable[[], None]
    ) -> Callable[[Sequence[protocol.Index]], Tensor]:
        """The pictures of some of this process's `own` (prompt, sample), of `total`; calls `look` before each part."""
        read = ReadPrompts(family, self._recipe.guidance.negative_prompt)
        done = 0

        def draw(batch: Sequence[protocol.Index]) -> Tensor:
            nonlocal done
            look()
            texts = [self._prompts[prompt] for prompt, _ in batch]
            drawn = protocol.generate(family, sampler, read, batch, self._recipe.evaluation.seed, texts)
            done += len(batch)
            if rank() == 0:
                self._progress(f"pictures, {sampler.setting.name}", total * done // own, total)
            return drawn

        return draw


def first_pictures(images: Images, prompts: int) -> Tensor:
    """Pictures of the first prompts from all processes, (prompts, samples, 3, H, W)."""
    wanted = [
        pictures[torch.tensor([prompt < prompts for prompt, _ in batch])]
        for batch, pictures in zip(images.batches, images.pictures, strict=True)
    ]
    found: Tensor = torch.cat(gather(wanted)).unflatten(0, (prompts, -1))
    return found
