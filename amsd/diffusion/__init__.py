"""Controlled sampling: affine DDIM steps, guidance, policies, rollouts, loading.

Names are imported lazily where they need diffusers (some ten seconds on a slow machine).
"""
