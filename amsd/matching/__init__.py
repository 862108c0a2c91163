"""Adjoint Matching as functions over tensors: adjoint, loss, step indices, mask, importance weights."""

from amsd.matching.adjoint import LeanAdjoint, lean_adjoint, vector_jacobian_product
from amsd.matching.importance import (
    effective_sample_size,
    normalized_ess,
    self_normalized_weights,
    stepwise_log_weights,
)
from amsd.matching.indices import IndexPlan, inverse_probabilities, plan_indices, stratified_indices
from amsd.matching.loss import MatchingLoss, control, matching_loss, norm_ratio, step_weights
from amsd.matching.smoothing import SmoothedGradient, smooth
from amsd.matching.threshold import QuantileThreshold

__all__ = [
    "IndexPlan",
    "LeanAdjoint",
    "MatchingLoss",
    "QuantileThreshold",
    "SmoothedGradient",
    "control",
    "effective_sample_size",
    "inverse_probabilities",
    "lean_adjoint",
    "matching_loss",
    "norm_ratio",
    "normalized_ess",
    "plan_indices",
    "self_normalized_weights",
    "smooth",
    "step_weights",
    "stepwise_log_weights",
    "stratified_indices",
    "vector_jacobian_product",
]
