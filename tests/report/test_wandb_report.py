from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from amsd.errors import UsageError
from amsd.report.story import Story
from amsd.report.tables import tables
from amsd.report.wandb_report import markdown, publish, require_key

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
    assert kinds.count("Scatter Plot") == 2
    assert kinds.count("Run History Line Plot") == 3 + 4 + 3
    for kind in ("Media Browser", "Parallel Coordinates Plot", "Parameter Importance", "Run Comparer"):
        assert kinds.count(kind) == 1
    grid = next(block for block in spec["blocks"] if block["type"] == "panel-grid")
    assert [runset["name"] for runset in grid["metadata"]["runSets"]] == [mode.name for mode in a_sweep.modes]
    filters = [json.dumps(runset["filters"]) for runset in grid["metadata"]["runSets"]]
    assert all('"group"' in text and "cfg-modes" in text and "guidance_scale" in text for text in filters)
    assert len(set(filters)) == len(filters)
    text = json.dumps(spec)
    assert "adjoint_norm/first" in text
    assert "config:schedule.value.eta" in text
    assert "over 2 training seeds" in text


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
