"""Rewards: differentiable scores of images under their prompts, found by name in `amsd.rewards.table`."""
