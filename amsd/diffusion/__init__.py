"""Controlled sampling: affine steps, families of models, guidance, policies, rollouts, loading.

Names are imported lazily where they need diffusers (some ten seconds on a slow machine).
"""
