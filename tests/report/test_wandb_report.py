from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from amsd.errors import UsageError
from amsd.recipe import RewardTerm
from amsd.report.story import ShownRun, Story
from amsd.report.tables import tables
from amsd.report.wandb_report import markdown, publish, require_key
from amsd.report.winner import headline

interface = pytest.importorskip("wandb_workspaces.reports.v2.interface")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A server that knows the project and keeps the report that it is given."""
    kept: list[dict[str, Any]] = []

    def execute(_api: Any, _query: Any, variables: dict[str, Any]) -> dict[str, Any]:
        if "spec" not in variables:
            return {"project": {"internalId": "UHJvamVjdDoxOmFtc2Q6dGVhbQ=="}}
        kept.append(variables)
        view = {
            "id": "Vmlldzox", "name": variables["name"], "displayName": variables["displayName"],
            "description": variables["description"], "spec": variables["spec"], "type": variables["type"],
            "project": {"name": variables["projectName"], "entityName": variables["entityName"]},
            "user": {"name": "a", "username": "a", "userInfo": {}},
            "createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00",
        }  # fmt: skip
        return {"upsertView": {"view": view, "inserted": True}}

    api = SimpleNamespace(
        projects=lambda _entity: [SimpleNamespace(name="amsd")],
        default_entity="team",
        client=SimpleNamespace(app_url="https://wandb.example/"),
        settings={"base_url": "https://wandb.example"},
    )
    monkeypatch.setattr(interface, "_get_api", lambda: api)
    monkeypatch.setattr(interface, "execute_graphql", execute)
    monkeypatch.setattr(interface, "get_app_url", lambda _api: "https://wandb.example")
    monkeypatch.setattr("wandb.login", lambda **_: True)
    return kept


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    grids = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
    return [panel for grid in grids for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]]


def test_sweep_report_has_run_sets_panels_media_and_tables(sent: list[dict[str, Any]], a_sweep: Story) -> None:
    assert publish(a_sweep).startswith("https://wandb.example/")
    (report,) = sent
    assert (report["projectName"], report["entityName"], report["type"]) == ("amsd", "team", "runs/draft")
    spec = json.loads(report["spec"])
    kinds = [panel["viewType"] for panel in panels(spec)]
    searched = [axis.key for axis in a_sweep.axes if "." in axis.key]
    assert kinds.count("Scatter Plot") == 2 + 1 + (len(searched) or 2)  # trade-offs, history, slices
    assert kinds.count("Run History Line Plot") == 3 + 4 + 3 + 2
    assert "Parameter Importance" not in kinds  # W&B's own has no error: a table has it, where there are enough trials
    for kind in ("Media Browser", "Parallel Coordinates Plot", "Run Comparer"):
        assert kinds.count(kind) == 1
    grid = next(block for block in spec["blocks"] if block["type"] == "panel-grid")
    assert [runset["name"] for runset in grid["metadata"]["runSets"]] == [mode.name for mode in a_sweep.modes]
    filters = [json.dumps(runset["filters"]) for runset in grid["metadata"]["runSets"]]
    assert all('"group"' in text and "cfg-modes" in text and "guidance_scale" in text for text in filters)
    assert len(set(filters)) == len(filters)
    text = json.dumps(spec)
    lines = next(panel["config"] for panel in panels(spec) if panel["viewType"] == "Parallel Coordinates Plot")
    columns = [json.dumps(column) for column in lines["columns"]]
    assert len(set(columns)) == len(columns) > 3
    assert "adjoint_norm/first" in text
    assert "config:schedule.value.eta" in text
    assert "over 2 training seeds" in text
    assert report["displayName"] == headline(a_sweep)
    assert {"performance/images_per_second", "seconds/total"} <= set(re.findall(r'"([a-z_/]+)"', text))
    assert any(panel["config"].get("showMaxYAxisLine") for panel in panels(spec) if panel["viewType"] == "Scatter Plot")


def test_importance_has_its_error(sent: list[dict[str, Any]], a_sweep: Story) -> None:
    publish(replace(a_sweep, importance={"schedule.eta": (0.7, 0.12), "method.reward_multiplier": (0.3, 0.12)}))
    text = json.dumps(json.loads(sent[0]["spec"]), ensure_ascii=False)
    assert "70 ± 12 %" in text
    assert text.index("schedule.eta` | 70") < text.index("method.reward_multiplier` | 30")


def test_terms_of_a_reward_have_their_curves(sent: list[dict[str, Any]], a_run: Story) -> None:
    entry = a_run.entries[0]
    assert entry.run is not None
    assert entry.run.recipe is not None
    terms = (*entry.run.recipe.reward, RewardTerm(name="brightness"))
    run = replace(entry.run, recipe=entry.run.recipe.model_copy(update={"reward": terms}))
    publish(replace(a_run, entries=(replace(entry, run=run),)))
    assert {"reward/brightness", "reward/mean"} <= set(re.findall(r'"(reward/[a-z]+)"', sent[0]["spec"]))


@pytest.mark.parametrize("logged", [("validation/kl",), ("kl", "validation/kl"), ()])
def test_methods_that_log_other_names_have_their_divergence(
    logged: tuple[str, ...], sent: list[dict[str, Any]], a_sweep: Story
) -> None:
    """DRaFT, ReFL and DDPO log no `kl` and have no adjoint; the divergence is measured on a fixed batch."""

    def rid(shown: ShownRun) -> ShownRun:
        if shown.run is None:
            return shown
        curve = shown.run.curves["kl"]
        kept = {name: each for name, each in shown.run.curves.items() if name != "kl" and "adjoint" not in name}
        return replace(shown, run=replace(shown.run, curves={**kept, **dict.fromkeys(logged, curve)}))

    publish(replace(a_sweep, entries=tuple(map(rid, a_sweep.entries))))
    spec = json.loads(sent[0]["spec"])
    assert "adjoint_norm" not in json.dumps(spec)
    shown: dict[str, set[str]] = {panel["viewType"]: set() for panel in panels(spec)}
    for panel in panels(spec):
        shown[panel["viewType"]] |= {name for name in ("kl", "validation/kl") if f'{name}"' in json.dumps(panel)}
    assert shown["Run History Line Plot"] >= set(logged)
    for kind in ("Scatter Plot", "Parallel Coordinates Plot"):
        assert ("validation/kl" in shown[kind]) == bool(logged)


@pytest.mark.filterwarnings("ignore:Filter expression contains")
def test_run_report_shows_the_one_run(sent: list[dict[str, Any]], a_run: Story) -> None:
    publish(a_run)
    spec = json.loads(sent[0]["spec"])
    kinds = [panel["viewType"] for panel in panels(spec)]
    assert "Media Browser" in kinds
    assert "Parallel Coordinates Plot" not in kinds
    assert "reward-hacking" in json.dumps(spec)


def test_without_a_key_it_says_at_once_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(UsageError, match="wandb login"):
        require_key()


def test_tables_are_markdown(a_sweep: Story) -> None:
    for table in tables(a_sweep):
        lines = markdown(table).splitlines()[2:]
        assert {line.count(" | ") for line in lines} == {len(table.heads) - 1}
