"""Composition root: a recipe becomes model, rewards, prompts, trainer, evaluator and trackers; used by the CLI."""
