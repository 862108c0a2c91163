"""The sentences of `docs/science.md`. READING was written from the numbers that the page shows."""

HEAD = """# What was measured on the embedded model

Made by one command, which anyone can repeat (about an hour and a half of one CPU core; finished runs are skipped):

    python benchmarks/science runs/science

Recipe `shapes` with the changes named, 16 held-out prompts × 8 samples, common noise. "Gain" is the paired difference of the trained reward
(`shapes:right`, bounded in [-1, 1]) to the base model; the other columns are paired differences too. A standard error combines the spread between
training seeds with the spread between prompts after averaging over seeds. Runs this short are not converged: they compare settings at equal updates,
they do not measure fixed points. What a converged run reaches is in [method.md](method.md#what-fine-tuning-reaches).

| claim | here |
|---|---|
| more λ: more reward, less diversity (reference's table) | agrees; the fall is in pixels, the classifier's features do not fall |
| CFG trajectories best, no guidance moderate, full CFG poor (reference) | does **not** agree: no guidance gains half as much again as the guided modes, which are alike |
| η = 1 is the noise to fine-tune with (theory) | agrees at equal updates: η = 0.5 gains less in every mode, 0.7 and 1.2 gain less or the same |
| a_k misses a part of the shift (closed form) | not visible after 16 updates; the proof is the closed form |
| outliers of the loss should be masked (reference's default) | does not agree: with the gradient clipped, masking them costs a fifth of the gain |
| a buffer is several times cheaper for the same reward (reference) | agrees |
"""
TITLES = {
    "lambda": "Reward and diversity against λ",
    "cfg-modes": "The three modes of guidance, equal updates",
    "eta": "Noise level of the sampler",
    "adjoint": "Which adjoint the loss matches, by number of steps",
    "outliers": "What becomes of outliers in the loss",
    "buffer": "Buffer against on-policy, 50 guided steps",
    "flow": "The flow model",
}
#: Shift of the terminal mean that is missing with a_k at the fixed point, in closed form (docs/method.md), by N.
CLOSED_FORM = {5: 0.457, 10: 0.290, 20: 0.164, 50: 0.071}
READING = {
    "flow": (
        "As on the UNet model the reward rises with λ, fine-tuning without guidance gains most at equal updates, and the mask costs a part of the gain. The end of the grid decides whether anything "
        "is learned ([method.md](method.md#10-flow-matching-models))."
    ),
    "lambda": (
        "Reward rises and pixel diversity falls with λ, as in the reference's table (λ = 10, 31.6, 100: ImageReward .342, .555, .787; DreamSim variance .377, .363, .336). "
        "The variance of the classifier's features does not fall; at λ = 125, where alignment with the caption falls, it rises: objects that leave their "
        "caption spread these features. They are not a perceptual diversity."
    ),
    "cfg-modes": (
        "The sweep [`cfg-modes`](../sweeps/cfg-modes.toml) at η = 1, 24 updates each. The reference reports CFG trajectories as great in practice, no guidance as moderate and full CFG as poor. "
        "This is **not** the order here: fine-tuning without guidance gains half as much again as CFG trajectories, at both noise levels of evaluation, and full CFG "
        "does not differ from CFG trajectories. A model of this size need not rank the modes as Stable Diffusion 1.5 does."
    ),
    "eta": (
        "The same sweep over the η of fine-tuning, evaluated at η = 1. Below 1 the sampler is not memoryless and the fixed point is biased ([method.md](method.md)); "
        "after 24 updates that bias is hidden by how far each run has come. η = 0.5 gains less than η = 1 in all three modes (two to five standard errors of the paired "
        "difference), η = 0.7 only with full CFG; η = 1.2, which is clamped at its late steps, gains less without a guided adjoint. η = 1 is never beaten by more than a standard error."
    ),
    "adjoint": (
        "No difference is seen. The bias of a_k lies in the fixed point, far from where 16 updates end; and since a_k differs from a_{k+1} mostly by a factor, "
        "Adam, which is blind to the scale of its gradients, takes nearly the same first steps with both. The closed form, and trained networks on a Gaussian base "
        "(`tests/training/test_gaussian.py`), are the evidence for a_{k+1}."
    ),
    "outliers": (
        "λ = 50, 40 updates, all with the gradient clipped to norm 1. Left as they are, outliers bring the most: 2.9 standard errors of the paired difference more than with the "
        "reference's mask, and clipping them lies between. That fits what [method.md](method.md#what-fine-tuning-reaches) found: trajectories with large adjoints belong to the tilt, and the "
        "mask leaves them out. Without gradient clipping a single outlier can undo a hundred updates."
    ),
    "buffer": (
        "A buffer of 32 trajectories and 10 passes costs 4.8 times fewer UNet evaluations per update and ends at the same reward, within two standard errors of the paired difference, "
        "although the effective sample size within a collection falls far below one. Weighting by importance changes nothing that can be seen here. At equal wall time the buffer is far ahead. "
        "Seconds here are of a machine that did other work meanwhile; measured in turn in one process (`python benchmarks/buffer_speed.py`, one thread, the other "
        "core busy) an update took 4.87 s on-policy and 0.80 s from the buffer, 6.1 times less: more than the count says, because larger batches are collected at once."
    ),
}
