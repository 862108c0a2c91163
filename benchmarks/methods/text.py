"""Sentences of `docs/methods.md`."""

HEAD = """# Methods compared

| method | converges to | reward's gradient | F per trajectory | what holds it near the base |
|---|---|---|---|---|
{kinds}

F counts network forward-equivalents for one trajectory of an optimizer step with the recipe `shapes` (10 steps, no guidance, K = 4; [cost](method.md#7-cost)). [The page on the method](method.md#9-methods-without-an-adjoint-equation)
says what each method computes, and where it is biased.

**What to use when.** If the reward has a gradient and λ should set the strength of the tilt, use `buffer-am`, or `am` for short runs. `eam` gains as much here for the same KL divergence. The more steps the sampler has,
the more it saves (with 50 steps it costs {eam:.0f} F per trajectory, `am` {am:.0f}). If the reward has no gradient (a detector, a counter, people, a server), use `ram`, which stays near
the base. `ddpo` is there for comparison; you must tune its `kl_weight`. `draft` and `refl` maximize the reward itself, and nothing stops them. Use them with a low learning rate, few steps and a
`training.kl_budget` or `training.diversity_budget`. A gain says little without its KL divergence, so `training.validate_every` measures the divergence for every method.
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
method has one. Only the method and its learning rate differ. Every run spends about {budget:,} F on training; the whole recipe `shapes` spends 25,000. Seeds: {seeds} for each method. Gains are
paired differences to the base model on 16 held-out prompts × 4 samples with common noise. Errors are one standard error over seeds and prompts (with one seed, over prompts alone). KL is the divergence
between the path laws, in nats, on 16 held-out trajectories.

*Nearer to the tilt* is KL(base ‖ tilt) - KL(model ‖ tilt) = λ × gain - KL, of path laws, with λ = 50 for every method. The tilt's unknown normalization is the same in both terms and cancels. Above 0 the
trained model is nearer to p(x) exp(λ r(x)) than the base is. Below 0 it is farther away.

The command continues where it stopped. `--processes 8` trains eight runs at once, and `--add FOLDER` includes the results of another machine.
"""
NAMES = {"unet": "UNet with DDIM's path", "flow": "Flow model"}
SECTION = """
## {name}

Recipe `{recipe}`{grid}. {rates}{times}

![Gain in reward against network calls, seconds and KL divergence](images/methods-{model}.svg)
"""
TIMED = " Seconds of training are processor time on one thread ({machines}): the number of network calls times the time of one call of the method, which was measured separately (`--timing`)."
SWEPT = "A sweep of {count} learning rates on seed 0 chose the rate of each method: the one whose run ended nearest to the tilt."
NOT_SWEPT = "The learning rate is the recipe's own for every method: no sweep has chosen a better one for each."
EFFICIENCY = """A weak tilt gains λ Var(r) at a KL divergence of λ² Var(r)/2. So gain/√KL at the end is the same for every λ, and no policy can have more. Methods whose λ means different things can therefore be
compared by this ratio. Differences are paired by seed and prompt. For a strong tilt the gain levels off, and gain/√KL falls for every method.

"""
FINER = """
## Beside 50 steps

`python benchmarks/methods runs/methods --fine` trains on-policy Adjoint Matching on the UNet with 50 steps of the sampler, as in the publication. The other methods have 10. Each is evaluated with the number of steps
that it trains with. The table says how many network calls the other methods need to reach the gain of each checkpoint. In brackets: the share of the calls at that checkpoint.

"""
CURVES = """
## Reward against KL divergence

`python benchmarks/methods runs/methods --curve` trains `am` and `eam` at other λ too, on the UNet with the recipe's learning rate. Differences are paired by seed and prompt.

"""
READING = """
## Reading it

*Nearness to the tilt* tells the methods apart where the reward alone does not. On the UNet `eam` and `buffer-am` come 10 nats nearer than the base, `am` 8, `ram` 2 or less; on the flow model `buffer-am` comes 12, `am` 10, `eam` 9, and `ram` no nearer
than its error. `draft`, `refl` and `ddpo` move away: they end 29 to 1,100 nats farther from the tilt than the base. `draft` and `refl` have the highest reward, and much of it is reward hacking: alignment with the caption falls by .5 on the UNet, by .15 to .49 on
the flow model. Back-propagation through one late step moves the layout too, because all steps share their weights, and costs the most KL divergence on the flow model.

`eam` keeps to the captions and gains as much as on-policy Adjoint Matching for the same KL divergence: the difference of gain/√KL is .000 ± .013 on the UNet and -.009 ± .011 on the flow model. With the law of the model the ratio is lower by more than two standard errors on both, because the
last steps move too far ([Whose tilt](method.md#9-methods-without-an-adjoint-equation)). At λ = 25, 50 and 100 on the UNet the difference is +.019 ± .008, .000 ± .013 and +.007 ± .007, so both are on the same curve of reward against KL divergence, or `eam` a little above it.
With 50 steps of the sampler `am` needs 22,900 network calls for a gain of .19; `eam` with 10 steps reaches it after a quarter of them, and `am` and `buffer-am` with 10 steps a little earlier.

`ram` sees no gradient of the reward. It gains what `am` gains, for four times the KL divergence on the UNet, and keeps to the captions; at three times the learning rate it gains .41 and loses .15 of alignment. `ddpo` spends 33 to 55 nats on gains of .09 to .25; its `kl_weight` was 0 here.

Equal work takes 12 to 26 s. Decoding and the reward come on top of the network calls, and methods differ in how often they need them.

Limits: this is one reward, with a gradient that is easy to follow, at one budget. Two learning rates were tried for each method, and the lower one was better for nearly all. Lower rates, or a KL budget, would keep `draft`, `refl` and `ddpo` nearer to the base. The
KL divergences are those after 12,000 network calls, not those of a converged run. For most methods other than `eam`, seed 0 was trained on another processor than seeds 1 and 2, which rounds differently.
"""
