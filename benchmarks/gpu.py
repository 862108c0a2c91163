"""Does amsd run on this GPU, how fast, and how far from what the card can do: ten minutes, one JSON line per finding.

    PYTHONPATH=. python benchmarks/gpu.py                        # one CUDA card, at most 520 seconds
    PYTHONPATH=. python benchmarks/gpu.py --device cpu --tiny    # the same code path on one CPU core, a few minutes

Needs torch, diffusers and what amsd imports at start; downloads nothing (all networks have random weights, but for the
embedded model). Lines go to the screen and to $OUT/results.jsonl as they come. A part that crashes is a finding: it is
printed, and the next part runs. The last line counts them: `crashes: N;`.
"""

from __future__ import annotations

from gpu_check.main import main

if __name__ == "__main__":
    main()
