"""The sections of a recipe. Key names are a promise to users: they are the names of the field and of the reference.

Every section is frozen and refuses unknown keys. Rules that join several keys live in `amsd.recipe.rules`, the section
and the rules of each method in `amsd.recipe.methods`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from amsd.recipe.section import Fraction, Name, Positive, Section, count_or, named


def only_path(name: str) -> bool:
    """Whether the name of a model can only be a path: hub ids have one slash at most."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _source(value: Any) -> Any:
    if isinstance(value, str):
        return named(value)
    if isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
        return tuple(value)
    raise ValueError("must name a file or a set of prompts, or be a list of prompts")


PromptSource = Annotated[str | tuple[str, ...], BeforeValidator(_source)]
CountOrAuto = Annotated[int | Literal["auto"], count_or("auto")]


class Lora(Section):
    """Low-rank adapters (`model.parameterization = "lora"`)."""

    rank: int = Field(default=8, ge=1, le=16_384)
    """LoRA rank r."""
    alpha: Positive | None = None
    """Scale numerator: the update is alpha / rank times B A. Unset: alpha = rank."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the linear layers that get an adapter."""


class Model(Section):
    """Which network is fine-tuned, and how its change is parameterized."""

    pretrained: Name = "embedded:shapes"
    """Hub id, local diffusers folder, single-file checkpoint, or `embedded:shapes`."""
    start: Name | None = None
    """Weights that training starts from, while the base stays `pretrained`: a run, a checkpoint, a LoRA file, or a
    fine-tuned pipeline (folder or single file). A hub id or hub:OWNER/NAME/FILE works too; unset: the base."""
    config: Name | None = None
    """For a single-file checkpoint: diffusers folder or hub id that holds the configuration and tokenizer (its weights
    are not read); unset: the hub repository of the file's family."""
    revision: Name | None = None
    """Git revision on the hub."""
    variant: Name | None = None
    """Weight-file variant on the hub or in the folder, such as "fp16"."""
    size: tuple[Annotated[int, Field(ge=8, le=16_384)], Annotated[int, Field(ge=8, le=16_384)]] | None = None
    """Height and width of the pictures in pixels, for training, evaluation and sampling; unset: the model's own."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the networks' arithmetic; trained weights and reward gradients stay in float32."""
    quantization: Literal["nf4"] | None = None
    """Store the frozen network under a LoRA with four bits per weight (bitsandbytes, extra `quantized`); unset: no."""
    parameterization: Literal["full", "lora", "offset"] = "full"
    """`full` (all weights, frozen copy as base), `lora`, or `offset` (base plus a learned difference)."""
    vae_tiling: bool = False
    """Decode in overlapping tiles: less memory for images of 1024 pixels and more, at the price of faint seams."""
    t5: bool = True
    """Load the T5 text encoder of Stable Diffusion 3; false saves 9 to 19 GB, and CLIP alone reads prompts."""
    max_sequence_length: int | None = Field(default=None, ge=0, le=512)
    """Tokens that a T5 encoder reads (or, where it is absent, zero vectors in its place); unset: diffusers' default."""
    prompt_windows: int = Field(default=1, ge=1, le=16)
    """Windows of 75 tokens that CLIP of Stable Diffusion reads of a prompt; amsd cuts longer ones, with a notice."""
    embedded_guidance: float | None = Field(default=None, ge=0, le=100)
    """Guidance that FLUX.1-dev takes as an input of its network; unset: diffusers' default, 3.5."""
    lora: Lora = Lora()

    @property
    def is_single_file(self) -> bool:
        """Whether `pretrained` names a checkpoint of one file."""
        return self.pretrained.lower().endswith((".safetensors", ".ckpt"))


class Schedule(Section):
    """The sampler that trajectories are drawn with (docs/method.md sections 1 and 10)."""

    num_inference_steps: int = Field(default=50, ge=2, le=1000)
    """Steps N of the sampler."""
    eta: float = Field(default=1.0, ge=0, le=10)
    """Noise level: 1 is memoryless (Theorem 1 of the Adjoint Matching paper), 0 has no noise and no control."""
    beta_start: Positive | None = None
    """First beta of the `scaled_linear` schedule; unset: the model's own."""
    beta_end: Positive | None = None
    """Last beta of the `scaled_linear` schedule; unset: the model's own."""
    timestep_spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    """How the N steps are spread over the model's timesteps (diffusers' name)."""
    final_step: Literal["noiseless", "midpoint"] = "noiseless"
    """Where the last step ends: without noise (the paper) or half way (the reference implementation)."""
    shift_terminal: Annotated[float, Field(gt=0, lt=1)] | None = None
    """For a flow-matching model: noise level at the start of the last step; the other levels are stretched to fit
    (diffusers' name); unset: the model's own grid."""


class Guidance(Section):
    """Classifier-free guidance and its three roles (docs/method.md section 2)."""

    guidance_scale: float = Field(default=7.5, ge=0, le=100)
    """Scale of the sampled trajectories; 1.0 means no guidance."""
    guidance_in_adjoint_computation: bool = False
    """Whether the base drift in the adjoint is guided."""
    guidance_in_control_computation: bool = False
    """Whether both predictions in the control are guided."""
    negative_prompt: str = ""
    """Negative prompt of guidance, in training, evaluation and sampling; empty: the empty prompt."""

    @model_validator(mode="before")
    @classmethod
    def _inert_flags(cls, data: Any) -> Any:
        # At scale 1 the flags change nothing: two equal runs must have one identity.
        if isinstance(data, dict) and data.get("guidance_scale") in (1, 1.0):
            inert = {"guidance_in_adjoint_computation", "guidance_in_control_computation"}
            return {key: False if key in inert and value is True else value for key, value in data.items()}
        return data


class RewardTerm(Section):
    """One term of the weighted reward."""

    name: Name
    """Reward of docs/rewards.md, such as `imagereward`, `pyiqa:musiq`, `python:FILE.py:FUNCTION` or `http://...`."""
    weight: float = 1.0
    """Factor of this term in the sum."""
    normalize: bool = False
    """Divide by the standard deviation of this term over the base model's samples."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword options of the reward, such as a local checkpoint path."""


class Prompts(Section):
    """Prompt sets: a file (text, JSON, JSONL, CSV, TSV, Parquet), a list of prompts, `embedded:general` (everyday
    subjects), `embedded:shapes` (captions of the embedded model), or `hub:ID[:SPLIT[:COLUMN]]`."""

    train: PromptSource = "embedded:shapes"
    """Prompts to train on."""
    evaluation: PromptSource = "embedded:shapes"
    """Prompts that every checkpoint is evaluated on."""
    column: str | None = None
    """Column (or JSON key) of both tables that holds the prompts; unset: `text`, `prompt`, `caption` and the like."""
    dropout: Fraction = 0.0
    """Probability, per sample, that the loss and its adjoint see no prompt (or guidance.negative_prompt)."""


class Optimizer(Section):
    """AdamW and its batch. `prompts_per_step` is global: processes and micro-batch change speed, not results."""

    name: Literal["adamw", "adamw-8bit"] = "adamw"
    """`adamw-8bit` keeps its two moments in eight bits (bitsandbytes, extra `quantized`)."""
    learning_rate: Positive = 3e-6
    """Largest learning rate, after the warm-up."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay of AdamW's two moments."""
    epsilon: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine", "step"] = "constant"
    """Course of the learning rate after the warm-up."""
    step_size: int = Field(default=100, ge=1)
    """Steps between decays of `schedule = "step"`."""
    step_gamma: Fraction = 0.5
    """Factor of each decay of `schedule = "step"`."""
    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 is off."""
    max_skipped_updates: int = Field(default=0, ge=0)
    """Largest number of updates in a row that are skipped because their loss or gradient is not finite; one more ends
    the run."""
    prompts_per_step: int = Field(default=125, ge=1, le=1_000_000)
    """Trajectories per optimizer step, over all processes and micro-batches."""
    micro_batch: CountOrAuto = 5
    """Largest number of trajectories of one process in one pass through the network with gradients. `auto`: on an
    accelerator the largest number that fits, on the CPU 5."""


class Training(Section):
    """Length, seed and technical settings of a run."""

    steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of all random numbers of the training."""
    ema_decay: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the exponential moving average that is evaluated and exported; unset: none."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    fsdp: bool = False
    """Divide parameters, gradients and optimizer state among the processes (FSDP2), which otherwise hold whole copies;
    for `full` and `offset`."""
    offload_text_encoders: bool = False
    """Keep text encoders in main memory, and on the device only while they read prompts that are new to the run."""
    compile: bool = False
    """Compile the repeated blocks of the network with `torch.compile`."""
    collection_batch: CountOrAuto = "auto"
    """Largest number of trajectories that one process collects at once. `auto`: on an accelerator the largest number
    that fits, on the CPU the number that takes no more memory than the loss."""
    tf32: bool = True
    """TF32 matrix products on CUDA."""
    deterministic: bool = False
    """On a GPU, use operations that give the same bits in every run, where PyTorch has them (slower). Set numbers for
    `collection_batch` and `micro_batch` with it: `auto` tries sizes, and their rounding differs."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Optimizer steps between checkpoints; the last step always has one."""
    background_checkpoints: bool = True
    """Write checkpoints while training goes on, from a copy in main memory; where it has no room, training waits."""
    keep: int = Field(default=2, ge=1)
    """Number of the newest checkpoints that are kept, in addition to the best one."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between quick validations on a fixed batch; 0 is never."""
    kl_budget: Positive | None = None
    """End the run at the first checkpoint whose path law has at least this KL divergence from the base's, in nats per
    trajectory, measured on a fixed batch of held-out prompts; unset: no budget."""
    diversity_budget: Fraction | None = None
    """End the run at the first checkpoint that keeps less than this share of the base model's diversity
    (`evaluation.diversity`, any of them, under any setting); unset: no budget."""


class EvaluationSetting(Section):
    """One way to sample for evaluation; part of a result's identity."""

    eta: float = Field(ge=0)
    scheduler: Literal["fine-tuning", "default"]
    guidance_scale: float = Field(ge=0)
    num_inference_steps: int = Field(ge=1)

    @property
    def name(self) -> str:
        """File stem of this setting, such as `fine-tuning-eta1-cfg7.5-steps50`."""
        return f"{self.scheduler}-eta{self.eta:g}-cfg{self.guidance_scale:g}-steps{self.num_inference_steps}"


class Evaluation(Section):
    """Evaluation of every checkpoint (docs/method.md section 6)."""

    every: int = Field(default=1, ge=0)
    """Evaluate each n-th checkpoint and the last one; 0 is never."""
    prompts: int | None = Field(default=None, ge=1)
    """How many prompts of the evaluation set, from its start; unset: all."""
    samples_per_prompt: int = Field(default=4, ge=1, le=1_000_000)
    """Pictures of each prompt, each from noise of its own."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the noise that all models of an evaluation share."""
    batch_size: CountOrAuto = 8
    """Largest number of pictures that one process draws at once. `auto`: on an accelerator the largest number that
    fits, on the CPU 8."""
    eta: tuple[Annotated[float, Field(ge=0, le=10)], ...] = Field(default=(0.0,), min_length=1)
    """Noise levels to evaluate at."""
    scheduler: tuple[Literal["fine-tuning", "default"], ...] = Field(default=("fine-tuning",), min_length=1)
    """Samplers to evaluate with: that of `[schedule]`, the model's own, or both."""
    guidance_scale: tuple[Annotated[float, Field(ge=0, le=100)], ...] | None = Field(default=None, min_length=1)
    """Scales to evaluate at; unset: `guidance.guidance_scale`."""
    num_inference_steps: int | None = Field(default=None, ge=1, le=1000)
    """Steps of the evaluation sampler; unset: `schedule.num_inference_steps`."""
    metrics: tuple[Name, ...] = ()
    """Held-out metrics, besides the rewards that are trained on."""
    diversity: tuple[Name, ...] = ()
    """Embeddings whose per-prompt variance is the diversity (needs two samples per prompt or more)."""
    distance: tuple[Name, ...] = ()
    """Embeddings in which the distance (KID, and FID where there are enough images) to the base model's images is
    measured (needs three prompts or more)."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Keyword options of held-out metrics and embedders by name, such as a local model path."""
    best: Name | None = None
    """Metric that chooses the best checkpoint; unset: the first reward."""
    images: int = Field(default=8, ge=0)
    """Prompts whose samples are kept as pictures."""


class CodeFile(Section):
    """A user's Python file that a `python:` scorer is in."""

    path: str
    """Absolute path."""
    sha256: str | None = None
    """Hash of its content when the run was written."""
