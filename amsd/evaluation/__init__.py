"""Evaluation of checkpoints: common noise, held-out metrics, diversity, paired comparison (docs/method.md section 6).

Importing this package costs nothing: torch and diffusers are imported by the modules that need them.
`evaluator.Evaluator` makes `result.EvaluationResult`s; `alarm`, `table`, `pictures` and `watch` do something with them.
"""
