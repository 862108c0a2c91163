"""Reports: one self-contained HTML page, or a W&B Report, of a run or of a sweep. Nothing here imports torch."""
