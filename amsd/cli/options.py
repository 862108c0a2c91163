"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from amsd.cli.outputs import place_argument, place_option

RecipeArgument = Annotated[str, place_argument("RECIPE", "Path or name of a recipe (`amsd recipe list`).")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. --set schedule.eta=0.7; repeatable."),
]
AllowCodeOption = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Allow the code, pickles and reward servers that a received run or recipe names.",
    ),
]
CheckpointArgument = Annotated[str, place_argument("CHECKPOINT", "A checkpoint, or a run (its best checkpoint).")]
ModelArgument = Annotated[
    str,
    place_argument(
        "MODEL|base",
        "A run (its best checkpoint), a checkpoint, `base`, or any model: a diffusers folder, a single file, a "
        "LoRA file, a hub id, or hub:OWNER/NAME/FILE.",
    ),
]
CheckpointRecipeOption = Annotated[
    str | None,
    place_option("--recipe", metavar="RECIPE", help="Recipe [default: that of the checkpoint]."),
]
RecipeOption = Annotated[
    str | None,
    place_option(
        "--recipe",
        metavar="RECIPE",
        help="Recipe [default: that of the checkpoint or export; for `base`: shapes].",
    ),
]
