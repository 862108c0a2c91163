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
    "eam, law of the model": ("the tilt of the model, which few steps do not draw", "the base's score, λ"),
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
SWEPT = "A sweep of {count} learning rates on seed 0 chose that of each method: the one whose run ended nearest to the tilt."
NOT_SWEPT = "The learning rate is the recipe's own for every method: no sweep has chosen a better one for each."
EFFICIENCY = """A weak tilt gains λ Var(r) at a KL divergence of λ² Var(r)/2. So gain/√KL at the end is the same for every λ, no policy can have more, and methods whose λ means different things can be compared by
it. Differences are paired by seed and prompt. For a strong tilt the gain levels off, and gain/√KL falls for every method.

"""
FINER = """
## Beside 50 steps

`python benchmarks/methods runs/methods --fine` trains on-policy Adjoint Matching on the UNet with 50 steps of the sampler, as it is published; the other methods have 10. Each evaluates with the steps that it trains
with. The table says how many network calls they need to the gain of each of its checkpoints, and what share that is of its own.

"""
READING = """
## Reading it

*Nearness to the tilt* tells the methods apart where the reward alone does not. On the UNet `am` and `buffer-am` come 8 nats nearer than the base, `eam` 4 to 6, `ram` 2; on the flow model `buffer-am` comes 11, `am` and `eam`
4 to 7, `ram` 3. `draft`, `refl` and `ddpo` leave: they are 23 to 1,200 nats farther than the base. Their reward is the highest, .57 to .81 for `draft` and `refl`, and most of it is reward hacking: on the UNet
alignment with the caption falls by .5, on the flow model by .14 to .47. Back-propagation through one late step moves the layout too, because all steps share their weights, and costs the most KL divergence on the flow model.

`eam` gains as much as Adjoint Matching, or more, and needs more KL divergence for it: 10 nats against 2.6 for gains of .29 and .22 on the UNet, 5.7 against 1.8 for .25 and .17 on the flow model. Its two endpoint levels
do not differ by more than their errors. At a third of the rate that the sweep chose on the UNet, `eam` gains .21 and keeps the captions (+.011); level .7 costs some alignment at either rate. `ram` sees no gradient of the reward and reaches .19 and .31
without leaving the captions beyond its error; at three times the rate it gains .41 on the UNet and loses .15 of alignment. `ddpo` gains as much as `am` or less, and spends 28 to 46 nats on it.

A method's seconds are almost its network calls: 20 to 29 for equal work.

What this does not say: each row is one training unless its column of seeds says more, so that errors are over prompts and what another seed would change is not in them. It is one reward, with a gradient that is easy to follow. The
KL divergences of `draft` and `refl` are where 12,000 network calls led; a lower rate or a budget keeps them nearer to the base.
"""
