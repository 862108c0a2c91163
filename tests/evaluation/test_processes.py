"""One and two processes give the same file, pictures included; nothing hangs on uneven shares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

PROGRAM = """
import sys
from pathlib import Path

from accelerate import PartialState

state = PartialState(cpu=True)

from amsd.evaluation.evaluator import Evaluator
from amsd.evaluation.pictures import save_pictures
from amsd.rewards.simple import Brightness
from tests.evaluation.scenes import PROMPTS, PixelsEmbedder, recipe
from tests.pipelines import stable_diffusion

folder = Path(sys.argv[1])
# 9 images in batches of 4: three batches, so the shares are uneven; with one prompt the second process has no share.
distance = [PixelsEmbedder("small", side=2)]
evaluator = Evaluator(recipe(), PROMPTS, [Brightness()], [PixelsEmbedder()], distance, cache=folder / "cache")
base = evaluator.evaluate(stable_diffusion(0), "base")
(result,) = evaluator.evaluate(stable_diffusion(1), "tuned", base)
again = evaluator.evaluate(stable_diffusion(1), "tuned", base)[0]
assert again == result
assert {"kid/small", "fid/small"} == set(result.metrics) - set(base[0].metrics)
assert (result.pictures is None) == (state.process_index > 0)
(single,) = Evaluator(recipe({"prompts": 1}), PROMPTS, [Brightness()], cache=folder / "cache").evaluate(
    stable_diffusion(1), "tuned"
)
assert abs(single.metrics["brightness"].per_prompt[0] - result.metrics["brightness"].per_prompt[0]) < 1e-3
result.save(folder / f"rank{state.process_index}")
save_pictures(result, folder / "samples")
state.destroy_process_group()
"""


def run(folder: Path, processes: int) -> None:
    folder.mkdir()
    program = folder / "program.py"
    program.write_text(PROGRAM)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *(launcher if processes > 1 else []), str(program), str(folder)]
    subprocess.run(command, check=True, timeout=600, env=environment, cwd=folder)


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    for processes in (1, 2):
        run(tmp_path / str(processes), processes)
    (expected,) = (tmp_path / "1" / "rank0").iterdir()
    for rank in range(2):
        found = tmp_path / "2" / f"rank{rank}" / expected.name
        assert json.loads(found.read_text()) == json.loads(expected.read_text())
    ones, others = (sorted((tmp_path / str(count) / "samples").rglob("*.png")) for count in (1, 2))
    assert [path.read_bytes() for path in ones] == [path.read_bytes() for path in others]
    assert len(ones) == 7
