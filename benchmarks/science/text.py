"""The sentences of `docs/science.md`. READING was written from the numbers that the page shows."""

HEAD = """# What was measured on the embedded model

One command made this page. It takes about an hour and a half of one CPU core, and skips finished runs:

    python benchmarks/science runs/science

All runs use the recipe `shapes` with the changes named, 16 held-out prompts × 8 samples, and common noise. "Gain" is the paired difference of the trained
reward (`shapes:right`, between -1 and 1) to the base model. The other columns are paired differences too. A standard error combines the spread between
training seeds with the spread between prompts after averaging over seeds. These short runs have not converged. They compare settings at equal updates and do
not measure fixed points. [Method](method.md#what-fine-tuning-reaches) says what a converged run reaches.

| claim | here |
|---|---|
| more λ: more reward, less diversity (reference's table) | agrees in pixel diversity; the classifier's features do not fall |
| CFG trajectories best, no guidance moderate, full CFG poor (reference) | does **not** agree: no guidance gains about 1.5 times as much as the two guided modes |
| η = 1 is the noise to fine-tune with (theory) | agrees at equal updates: η = 0.5 gains less in every mode, 0.7 and 1.2 gain less or the same |
| a_k misses a part of the shift (closed form) | too small to see after 16 updates; the closed form proves it |
| outliers of the loss should be masked (reference's default) | does not agree: with the gradient clipped, masking them costs a fifth of the gain |
| a buffer is several times cheaper for the same reward (reference) | agrees |
"""
TITLES = {
    "lambda": "Reward and diversity against λ",
    "cfg-modes": "The three modes of guidance, equal updates",
    "eta": "Noise level of the sampler",
    "adjoint": "Which adjoint the loss matches, by number of steps",
    "outliers": "What to do with outliers in the loss",
    "buffer": "Buffer against on-policy, 50 guided steps",
    "flow": "The flow model",
}
#: Shift of the terminal mean that is missing with a_k at the fixed point, in closed form (docs/method.md), by N.
CLOSED_FORM = {5: 0.457, 10: 0.290, 20: 0.164, 50: 0.071}
READING = {
    "flow": (
        "As on the UNet model, the reward rises with λ, training without guidance gains most at equal updates, and "
        "the mask costs a part of the gain. The end of the grid decides whether the run learns anything "
        "([method.md](method.md#10-flow-matching-models))."
    ),
    "lambda": (
        "The reward rises and pixel diversity falls with λ. The reference's table shows the same (λ = 10, 31.6, 100: "
        "ImageReward .342, .555, .787; DreamSim variance .377, .363, .336). The variance of the classifier's features "
        "does not fall. It rises at λ = 125, where alignment with the caption falls, because objects that leave their "
        "caption spread these features. These features do not measure perceptual diversity."
    ),
    "cfg-modes": (
        "The sweep [`cfg-modes`](../sweeps/cfg-modes.toml) at η = 1, 24 updates each. The reference calls CFG "
        "trajectories great in practice, no guidance moderate and full CFG poor. The order here is **different**. "
        "Fine-tuning without guidance gains about 1.5 times as much as CFG trajectories, at both noise levels of "
        "evaluation. Full CFG does not differ from CFG trajectories. A model of this size need not rank the modes as "
        "Stable Diffusion 1.5 does."
    ),
    "eta": (
        "The same sweep over the η of fine-tuning, evaluated at η = 1. Below 1 the sampler is not memoryless, and the "
        "fixed point is biased ([method.md](method.md)). After 24 updates the bias does not show, because the runs "
        "are still far from their fixed points. η = 0.5 gains less than η = 1 in all three modes, by two to five "
        "standard errors of the paired difference. η = 0.7 gains less with full CFG only. η = 1.2, whose late steps "
        "are clamped, gains less without a guided adjoint. No setting beats η = 1 by more than a standard error."
    ),
    "adjoint": (
        "The two do not differ here. The bias of a_k is in the fixed point, and 16 updates end far from it. Also, "
        "a_k differs from a_{k+1} mostly by a factor, and Adam ignores the scale of its gradients, so the first steps "
        "are nearly the same with both. The evidence for a_{k+1} is the closed form, and networks trained on a "
        "Gaussian base (`tests/training/test_gaussian.py`)."
    ),
    "outliers": (
        "λ = 50, 40 updates, all with the gradient clipped to norm 1. Without a mask the gain is largest: 2.9 "
        "standard errors of the paired difference above the reference's mask. Clipping the outliers lies between. "
        "This agrees with [method.md](method.md#what-fine-tuning-reaches): trajectories with large adjoints belong to "
        "the tilt, and the mask drops them. Without gradient clipping, one outlier can undo a hundred updates."
    ),
    "buffer": (
        "A buffer of 32 trajectories and 10 passes needs 4.8 times fewer network evaluations per update. It ends at "
        "the same reward, within two standard errors of the paired difference, although the effective sample size "
        "within a collection falls far below one. Importance weights change nothing that can be seen here. At equal "
        "wall time the buffer is far ahead. The seconds in the table come from a machine that did other work too. "
        "`python benchmarks/buffer_speed.py` (one thread, the other core busy) runs both in turn in one process: an "
        "update took 4.87 s on-policy and 0.80 s from the buffer, 6.1 times less. This is more than the count says, because "
        "the buffer collects larger batches at once."
    ),
}
