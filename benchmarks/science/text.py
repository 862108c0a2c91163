"""The sentences of `docs/science.md`. READING was written from the numbers that the page shows."""

HEAD = """# What was measured on the embedded model

Made by one command, which anyone can repeat (about an hour and a half on one CPU core; finished runs are skipped):

    python benchmarks/science runs/science
"""
TITLES = {
    "lambda": "Reward and diversity against λ",
    "cfg-modes": "The three modes of guidance, equal updates",
    "eta": "Noise level of the sampler (the theory asks for η ≥ 1)",
    "adjoint": "Which adjoint the loss matches, by number of steps",
    "buffer": "Buffer against on-policy, 50 guided steps",
}
#: Shift of the terminal mean that is missing with a_k, in closed form (docs/method.md), by number of steps.
CLOSED_FORM = {5: 0.457, 10: 0.290, 20: 0.164, 50: 0.071}
READING = dict.fromkeys(TITLES, "")
