"""Sentences of `docs/methods.md`."""

HEAD = """# Methods compared

| method | converges to | reward's gradient | F per trajectory | what holds it near the base |
|---|---|---|---|---|
{kinds}

F are network forward-equivalents for one trajectory of an optimizer step with the recipe `shapes` (10 steps, no guidance, K = 4; [cost](method.md#7-cost)). [The page on the method](method.md#9-methods-without-an-adjoint-equation)
says what each one computes, and where it is biased.

**What to use when.** Where the reward has a gradient and λ should mean something: `buffer-am`, or `am` for short runs. Without a gradient (a detector, a counter, people, a server): `ram`, which keeps to
the base. `ddpo` is there to compare with; its `kl_weight` has to be tuned. `draft` and `refl` climb the reward itself: use them for details that late steps decide, with few steps and a
`training.kl_budget` or `training.diversity_budget`, for nothing else stops them. A gain without the KL divergence beside it says little, so `training.validate_every` measures it for every method.
"""
KINDS = {
    "am": ("the tilt p(x) exp(λ r(x))", "the path cost, λ"),
    "buffer-am": ("the same", "the path cost, λ"),
    "eam": ("the tilt, from the endpoint's noise level on", "the base's score, λ"),
    "ram": ("near the tilt, biased where the reward is curved", "regression onto the base, λ"),
    "draft, all steps": ("the highest reward", "nothing"),
    "draft, last step": ("the highest reward that the last step can make", "nothing"),
    "refl": ("the highest reward of predicted images", "nothing"),
    "ddpo": ("the highest reward", "clipping, `kl_weight` (0 unless set)"),
}
"""Converges to, held by."""
MEASURED = """
## Measured

    python benchmarks/methods runs/methods{options}

trains every method on the embedded model by the recipe `shapes` (reward `shapes:right`: the object is to the right), with the same prompts, batch, sampler, and λ = 50 where a method has one. Only the
method differs, and its learning rate{rates}. Every run has about {budget:,} F of training; the recipe itself spends 25,000. Seeds: {seeds}. Gains are
paired differences to the base model on 16 held-out prompts × 4 samples with common noise; errors are one standard error over seeds and prompts (with one seed over prompts alone). KL is that of the
path laws, in nats, on 16 held-out trajectories. The command goes on where it was stopped.

![Gain in reward against network calls and KL divergence](images/methods.svg)
"""
SWEPT = ", which a sweep of {count} rates on seed 0 chose (the highest held-out reward that kept the caption alignment within 0.05)"
NOT_SWEPT = ": it is the recipe's own, {rate:g}, for every method, and no sweep has chosen a better one for each"
