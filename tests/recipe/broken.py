"""Recipes that cannot be used, and what the user must be told: the key, and the reason or the way out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Broken:
    """One wrong recipe, the key that is wrong in it, and a part of what is said about it."""

    name: str
    text: str
    key: str
    reason: str


_REWARD = '[[reward]]\nname = "brightness"\n'


def _with(name: str, change: str, key: str, reason: str) -> Broken:
    return Broken(name, f"{change}\n{_REWARD}", key, reason)


def _only(name: str, text: str, key: str, reason: str) -> Broken:
    return Broken(name, text, key, reason)


WRONG_TYPE = (
    _with("a text for a number", '[schedule]\neta = "high"', "schedule.eta", "valid number"),
    _with("a quoted number", '[training]\nsteps = "7"', "training.steps", "valid integer"),
    _with("a fraction for a count", "[training]\nsteps = 7.5", "training.steps", "valid integer"),
    _with("a number for a flag", "[training]\ncompile = 1", "training.compile", "valid boolean"),
    _with(
        "a fraction for a count or auto",
        "[training]\ncollection_batch = 2.5",
        "training.collection_batch",
        '"auto" or a whole number',
    ),
    _with("no trajectory at once", "[training]\ncollection_batch = 0", "training.collection_batch", "from 1 on"),
    _with("a text for a flag", '[training]\ncompile = "False"', "training.compile", "valid boolean"),
    _with("a flag for a number", "[schedule]\neta = true", "schedule.eta", "valid number"),
    _with("a number for a list", "[evaluation]\neta = 0.0", "evaluation.eta", "must be a list (got 0.0). Write [0.0]."),
    _with("three betas", "[optimizer]\nbetas = [0.9, 0.9, 0.9]", "optimizer.betas", "2 items"),
    _with("one bad beta", '[optimizer]\nbetas = [0.9, "x"]', "optimizer.betas[1]", "valid number"),
    _with("a value for a table", "schedule = 1", "schedule", "object"),
    _with("a date", "[tracking]\nname = 'a'\ntags = 2026-01-01", "tracking.tags", "must be a list"),
    _only(
        "one table for the list of rewards",
        '[reward]\nname = "brightness"',
        "reward",
        "Write [[reward]] with two brackets, or reward = [{...}].",
    ),
    _with("not a number", "[schedule]\neta = nan", "schedule.eta", "finite number"),
    _with("infinite", "[method]\nreward_multiplier = inf", "method.reward_multiplier", "finite number"),
)

UNKNOWN_KEY = (
    _with("an unknown section", "[modell]\n", "modell", "Did you mean 'model'?"),
    _with("a section of another tool", "[wandb]\nproject = 'x'", "wandb", "unknown key"),
    _with("a key at the top", "eta = 1.0", "eta", "unknown key"),
    _with("a key in a section", "[schedule]\netaa = 1.0", "schedule.etaa", "Did you mean 'eta'?"),
    _with("a key in the third level", "[model.lora]\nrnk = 4", "model.lora.rnk", "Did you mean 'rank'?"),
    _with("a key in the buffer", "[method.buffer]\nsizes = 4", "method.buffer.sizes", "Did you mean 'size'?"),
    _with("a key of another section", "[training]\nlearning_rate = 1e-4", "training.learning_rate", "Known: "),
    _only("a key in a reward", _REWARD + "wieght = 2.0", "reward[0].wieght", "Did you mean 'weight'?"),
)

NOT_A_CHOICE = (
    _with("a method", '[method]\nname = "bufer-am"', "method.name", "Did you mean 'buffer-am'?"),
    _with("a spacing", '[schedule]\ntimestep_spacing = "trail"', "schedule.timestep_spacing", "'trailing'"),
    _with("a precision", '[model]\nprecision = "float32"', "model.precision", "'fp32'"),
    _with("a parameterization", '[model]\nparameterization = "Lora"', "model.parameterization", "'lora'"),
    _with("an evaluation scheduler", '[evaluation]\nscheduler = ["ddpm"]', "evaluation.scheduler[0]", "'default'"),
    _with("a tracking mode", '[tracking]\nmode = "of"', "tracking.mode", "'offline'"),
)

OUT_OF_RANGE = (
    _with("a negative eta", "[schedule]\neta = -1.0", "schedule.eta", "greater than or equal to 0"),
    _with("one step", "[schedule]\nnum_inference_steps = 1", "schedule.num_inference_steps", "or equal to 2"),
    _with("no training", "[training]\nsteps = 0", "training.steps", "or equal to 1"),
    _with("a negative seed", "[training]\nseed = -1", "training.seed", "or equal to 0"),
    _with("an average that never moves", "[training]\nema_decay = 1.0", "training.ema_decay", "less than 1"),
    _with("lambda zero", "[method]\nreward_multiplier = 0.0", "method.reward_multiplier", "greater than 0"),
    _with("certain dropout and more", "[prompts]\ndropout = 1.5", "prompts.dropout", "or equal to 1"),
    _with("rank zero", "[model.lora]\nrank = 0", "model.lora.rank", "or equal to 1"),
    _with("a huge guidance", "[guidance]\nguidance_scale = 750", "guidance.guidance_scale", "or equal to 100"),
    _with("no evaluation eta", "[evaluation]\neta = []", "evaluation.eta", "at least 1 item"),
)

TOGETHER = (
    _with("a configuration of a folder", '[model]\npretrained = "someone/model"\nconfig = "someone/other"',
          "model.config", "belongs to a single-file checkpoint"),
    _with("a variant of one file", '[model]\npretrained = "model.safetensors"\nvariant = "fp16"',
          "model.variant", "a single file has none"),
    _with("training without noise", "[schedule]\neta = 0.0", "schedule.eta", "without noise there is no control"),
    _with("one beta", "[schedule]\nbeta_start = 0.002", "schedule.beta_end", "set together"),
    _with("betas upside down", "[schedule]\nbeta_start = 0.02\nbeta_end = 0.002", "schedule.beta_end", "between"),
    _with("too many loss steps", "[schedule]\nnum_inference_steps = 4", "method.timesteps_per_trajectory", "at most 3"),
    _with("diversity of one sample", '[evaluation]\nsamples_per_prompt = 1\ndiversity = ["clip"]',
          "evaluation.samples_per_prompt", "undefined for a single sample"),
    _with("a distance of two prompts", '[evaluation]\nprompts = 2\ndistance = ["clip"]',
          "evaluation.prompts", "Use 3 or more, or remove evaluation.distance."),
    _with("half a step in the buffer", '[method]\nname = "buffer-am"\n[method.buffer]\nsize = 300',
          "method.buffer.size", "Nearest: 250 or 375."),
    _with("a buffer below one step", '[method]\nname = "buffer-am"\n[method.buffer]\nsize = 8',
          "method.buffer.size", "Nearest: 125."),
    _with("an unknown best", '[evaluation]\nbest = "clip-score"', "evaluation.best", "recipe evaluates brightness"),
    _with("draws without noise", "[method.smoothing]\nsamples = 4", "method.smoothing.noise_std", "all the same"),
    _only("a reward twice", _REWARD + _REWARD, "reward[1].name", "is listed twice"),
    _only("a reward without effect", _REWARD + "weight = 0.0", "reward[0].weight", "evaluation.metrics"),
)  # fmt: skip

ABSENT = (
    _only("an empty file", "", "reward", "required"),
    _only("no reward", "[training]\nsteps = 3", "reward", "required"),
    _only("an empty list of rewards", "reward = []", "reward", "at least 1 item"),
    _only("a reward without a name", "[[reward]]\nweight = 1.0", "reward[0].name", "required"),
)

_NOTHING = "names nothing (is a shell variable unset?)"
NAMELESS = (
    *(_with(f"no {key}", f'[model]\n{key} = ""', f"model.{key}", _NOTHING)
      for key in ("pretrained", "start", "config", "revision", "variant")),
    *(_with(f"no prompts to {key}", f'[prompts]\n{key} = " "', f"prompts.{key}", _NOTHING)
      for key in ("train", "evaluation")),
    *(_with(f"no name in {key}", f'[evaluation]\n{key} = [""]', f"evaluation.{key}[0]", _NOTHING)
      for key in ("metrics", "diversity", "distance")),
    _with("a number for prompts", "[prompts]\ntrain = 3", "prompts.train", "or be a list of prompts (got 3)"),
    _with("a number among prompts", '[prompts]\ntrain = ["a", 3]', "prompts.train", "or be a list of prompts"),
    _with("no best", '[evaluation]\nbest = ""', "evaluation.best", _NOTHING),
    _only("a reward of no name", '[[reward]]\nname = ""', "reward[0].name", _NOTHING),
)  # fmt: skip

BROKEN = WRONG_TYPE + UNKNOWN_KEY + NOT_A_CHOICE + OUT_OF_RANGE + TOGETHER + ABSENT + NAMELESS

#: Content of a file that is no TOML at all -> what is said about it.
NOT_TOML: dict[str, tuple[bytes, str]] = {
    "a line without a value": (b"[schedule]\neta =\n", "line 2"),
    "a section left open": (b"[schedule\neta = 1.0\n", "line 1"),
    "one key twice": (b"[schedule]\neta = 1.0\neta = 0.7\n", "Cannot overwrite a value"),
    "YAML": (b"schedule:\n  eta: 1.0\n", "line 1"),
    "JSON": (b'{"schedule": {"eta": 1.0}}\n', "line 1"),
    "Latin-1": ("# Schrödinger\n".encode("latin-1"), "not UTF-8 text (byte 6)"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00", "not UTF-8 text (byte 0)"),
}
