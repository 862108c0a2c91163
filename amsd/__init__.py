"""amsd: fine-tune Stable Diffusion on a differentiable reward by Adjoint Matching."""

__version__ = "0.1.0"
