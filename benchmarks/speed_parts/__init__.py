"""The parts of `python benchmarks/speed.py`, which `nox -s bench` runs."""
