"""Training: the fit loop, its experience and checkpoints, and in `methods` what each method makes of them."""
