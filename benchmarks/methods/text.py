"""Sentences of `docs/methods.md`."""

HEAD = """# Methods compared

| method | converges to | reward's gradient | F per trajectory | what holds it near the base |
|---|---|---|---|---|
{kinds}

F are network forward-equivalents for one trajectory of an optimizer step with the recipe `shapes` (10 steps, no guidance, K = 4; [cost](method.md#7-cost)). [The page on the method](method.md#9-methods-without-an-adjoint-equation)
says what each one computes, and where it is biased.

**What to use when.** Where the reward has a gradient and λ should mean something: `buffer-am`, or `am` for short runs. Without a gradient (a detector, a counter, people, a server): `ram`, which keeps to
the base. `ddpo` is there to compare with; its `kl_weight` has to be tuned. `draft` and `refl` climb the reward itself: use them with a low learning rate, few steps and a
`training.kl_budget` or `training.diversity_budget`, because nothing else stops them. A gain without the KL divergence beside it says little, so `training.validate_every` measures it for every method.
"""
KINDS = {
    "am": ("the tilt p(x) exp(λ r(x))", "the path cost, λ"),
    "buffer-am": ("the same", "the path cost, λ"),
    "eam": ("near the tilt: the way to the clean image is one step", "the base's score, λ"),
    "eam, level 0.7": ("the same, with a longer step", "the base's score, λ"),
    "ram": ("near the tilt, biased where the reward is curved", "regression onto the base, λ"),
    "draft, all steps": ("the highest reward", "nothing"),
    "draft, last step": ("the highest reward", "nothing"),
    "refl": ("the highest reward of predicted images", "nothing"),
    "ddpo": ("the highest reward", "clipping, `kl_weight` (0 unless set)"),
}
"""Converges to, held by."""
MEASURED = """
## Measured

    python benchmarks/methods runs/methods{options}

trains every method on the embedded models (reward `shapes:right`: the object is to the right), with the same prompts, batch, sampler, and λ = 50 where a method has one. Only the
method differs, and its learning rate. Every run has about {budget:,} F of training; the recipe `shapes` itself spends 25,000. Seeds: {seeds} for each method. Gains are
paired differences to the base model on 16 held-out prompts × 4 samples with common noise; errors are one standard error over seeds and prompts (with one seed over prompts alone). KL is that of the
path laws, in nats, on 16 held-out trajectories.

*Nearer to the tilt* is KL(base ‖ tilt) - KL(model ‖ tilt) = λ × gain - KL, of path laws, with λ = 50 for every method: the tilt's unknown normalization is the same in both and cancels. Above 0 the
training has come nearer to p(x) exp(λ r(x)) than the base is, below 0 it has left both.

The command goes on where it was stopped; `--processes 8` makes eight runs at once, and `--add FOLDER` takes in the results of another machine.
"""
NAMES = {"unet": "UNet with DDIM's path", "flow": "Flow model"}
SECTION = """
## {name}

Recipe `{recipe}`. {rates} Seconds of training are those on {machine}.

![Gain in reward against network calls, seconds and KL divergence](images/methods-{model}.svg)
"""
SWEPT = "A sweep of {count} learning rates on seed 0 chose that of each method: the highest held-out reward that kept the caption alignment within 0.05, or the least fall of it where none did."
NOT_SWEPT = "The learning rate is the recipe's own for every method: no sweep has chosen a better one for each."
LEVELS_NOTE = """
Between checkpoints, the base included, the gain is taken as linear in √KL. * The level lies before the first checkpoint.
"""
FINER = """
## Beside 50 steps

`python benchmarks/methods runs/methods --fine` trains on-policy Adjoint Matching on the UNet with 50 steps of the sampler, as it is published; the other methods have 10. Each evaluates with the steps that it trains
with. The table says how many network calls they need to the gain of each of its checkpoints, and what share that is of its own.

"""
READING = """
## Reading it

`draft` and `refl` have the highest reward, and most of it is reward hacking: alignment with the caption falls by 0.3 to 0.4, at KL divergences of 80 and more. With all steps back-propagated the first
checkpoint is still sound (KL 19, gain 0.26, alignment -0.02). Back-propagation through one late step moves the layout too, because all steps share their weights. `am`, `buffer-am` and `eam` gain 0.2 at
KL 3 to 5 and keep the captions; at KL 3 the two of Adjoint Matching gain most, where the gains of `draft`, `refl` and `ddpo` are inferred from checkpoints far away. `ram` and `ddpo` see no gradient of the
reward and are slower, and `ddpo` drifts (KL 35). This is one seed, one reward and one learning rate for all, on one of the two embedded models: errors are over prompts, so what another seed would change is
not in them. A lower rate keeps `draft` and `refl` nearer to the base.
"""
