"""Sentences of `docs/methods.md`."""

HEAD = """# Methods compared

| method | converges to | reward's gradient | F per trajectory | what holds it near the base |
|---|---|---|---|---|
{kinds}

F are network forward-equivalents for one trajectory of an optimizer step with the recipe `shapes` (10 steps, no guidance, K = 4; [cost](method.md#7-cost)). [The page on the method](method.md#9-methods-without-an-adjoint-equation)
says what each one computes, and where it is biased.

**What to use when.** Where the reward has a gradient and λ should mean something: `buffer-am`, or `am` for short runs, or `eam`, which gains as much for the same KL divergence here and costs less the more steps
the sampler has (50 steps: {eam:.0f} F per trajectory, `am` {am:.0f}). Without a gradient (a detector, a counter, people, a server): `ram`, which keeps to
the base. `ddpo` is there to compare with; its `kl_weight` has to be tuned. `draft` and `refl` climb the reward itself: use them with a low learning rate, few steps and a
`training.kl_budget` or `training.diversity_budget`, because nothing else stops them. A gain without the KL divergence beside it says little, so `training.validate_every` measures it for every method.
"""
KINDS = {
    "am": ("the tilt p(x) exp(λ r(x))", "the path cost, λ"),
    "buffer-am": ("the same", "the path cost, λ"),
    "eam": (
        "near the tilt: the adjoint takes one long step",
        "the base's score, λ",
    ),
    "eam, law of the model": ("near the tilt of what infinitely many steps would draw", "the base's score, λ"),
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

This command trains every method on both embedded models. The reward is `shapes:right`: the object is to the right. All runs have the same prompts, batch and sampler, and λ = 50 where a
method has one; only the method and its learning rate differ. Every run has about {budget:,} F of training; the recipe `shapes` itself spends 25,000. Seeds: {seeds} for each method. Gains are
paired differences to the base model on 16 held-out prompts × 4 samples with common noise; errors are one standard error over seeds and prompts (with one seed over prompts alone). KL is that of the
path laws, in nats, on 16 held-out trajectories.

*Nearer to the tilt* is KL(base ‖ tilt) - KL(model ‖ tilt) = λ × gain - KL, of path laws, with λ = 50 for every method: the tilt's unknown normalization is the same in both and cancels. Above 0 the
training has come nearer to p(x) exp(λ r(x)) than the base is, below 0 it has left both.

The command goes on where it was stopped; `--processes 8` makes eight runs at once, and `--add FOLDER` takes in the results of another machine.
"""
NAMES = {"unet": "UNet with DDIM's path", "flow": "Flow model"}
SECTION = """
## {name}

Recipe `{recipe}`. {rates}{times}

![Gain in reward against network calls, seconds and KL divergence](images/methods-{model}.svg)
"""
TIMED = " Seconds of training are processor time on one thread ({machines}): network calls times what a call of the method takes, measured apart (`--timing`)."
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
CURVES = """
## Reward against KL divergence

`python benchmarks/methods runs/methods --curve` trains `am` and `eam` at other λ too, on the UNet with the recipe's learning rate. Differences are paired by seed and prompt.

"""
READING = """
## Reading it

*Nearness to the tilt* tells the methods apart where the reward alone does not. On the UNet `eam` and `buffer-am` come 10 nats nearer than the base, `am` 8, `ram` 2 or less; on the flow model `buffer-am` comes 12, `am` 10, `eam` 9, and `ram` no nearer
than its error. `draft`, `refl` and `ddpo` leave: they end 29 to 1,100 nats farther from the tilt than the base. `draft` and `refl` have the highest reward, and much of it is reward hacking: alignment with the caption falls by .5 on the UNet, by .15 to .49 on
the flow model. Back-propagation through one late step moves the layout too, because all steps share their weights, and costs the most KL divergence on the flow model.

`eam` keeps to the captions and gains as much as on-policy Adjoint Matching for the same KL divergence: the difference of gain/√KL is .000 ± .013 on the UNet and -.009 ± .011 on the flow model. With the law of the model it would be less by more than two standard errors on both: the
last steps are moved too far ([Whose tilt](method.md#9-methods-without-an-adjoint-equation)). At λ = 25, 50 and 100 on the UNet the difference is +.019 ± .008, .000 ± .013 and +.007 ± .007, so both are on the same curve of reward against KL divergence, or `eam` a little above it.
With 50 steps of the sampler `am` needs 22,900 network calls for a gain of .19; `eam` with 10 steps is there after a quarter of them, and so are `am` and `buffer-am` with 10 steps, a little earlier.

`ram` sees no gradient of the reward. It gains what `am` gains, for four times the KL divergence on the UNet, and keeps to the captions; at three times the learning rate it gains .41 and loses .15 of alignment. `ddpo` spends 33 to 55 nats on gains of .09 to .25; its `kl_weight` was 0 here.

Equal work takes 12 to 26 s: decoding and the reward are beside the network calls, and methods differ in how often they need them.

What this does not say: it is one reward, with a gradient that is easy to follow, at one budget; two learning rates were tried for each method, and the lower one was the better for nearly all. Lower ones, or a budget, would keep `draft`, `refl` and `ddpo` nearer to the base. The
KL divergences are where 12,000 network calls led, not where the methods would rest. For most methods but `eam`, seed 0 was trained on another processor than seeds 1 and 2, which rounds differently.
"""
