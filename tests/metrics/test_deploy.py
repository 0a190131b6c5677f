"""What is shipped for Grafana and Prometheus names only what the collector tells."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.metrics import exposition

from .scraping import Scrape

MakeLayer = Callable[..., AsyncIPCChannelLayer]
DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "asgi_ipc.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load(
    (DEPLOY / "prometheus" / "asgi_ipc.rules.yml").read_text()
)["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
KINDS = {"stat", "timeseries"}
GRID_COLUMNS = 24
OF_THE_SERVER = {"instance", "job"}  # labels that Prometheus adds itself


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target


def expressions() -> list[str]:
    annotations = DASHBOARD["annotations"]["list"]
    return [
        *(target["expr"] for _, target in targets()),
        *(one["expr"] for one in annotations if "expr" in one),
        *(rule["expr"] for rule in RULES),
    ]


@pytest.fixture
def labels_of(make_layer: MakeLayer) -> dict[str, set[str]]:
    """Every metric the collector tells, with the labels of its samples."""
    layer = make_layer()
    layer.sync.send("a", {})
    found: dict[str, set[str]] = {}
    for metric in Scrape(exposition(layer).decode(), layer.prefix).metrics:
        for sample in metric.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_metric_and_label_exists(labels_of: dict[str, set[str]]) -> None:
    """In the queries of the dashboard and in the alerts."""
    for expression in expressions():
        names = re.findall(r"\basgi_ipc_\w+", expression)
        assert names, expression
        for name in names:
            assert name in labels_of, expression
        selectors = re.findall(r"(asgi_ipc_\w+)\{([^}]*)\}", expression)
        for name, matchers in selectors:
            used = set(re.findall(r"(\w+)\s*[=!]", matchers))
            assert used <= labels_of[name], expression


def test_every_legend_and_text_uses_labels_that_exist(labels_of: dict[str, set[str]]) -> None:
    """A legend of a label that is not there would be empty."""
    for title, target in targets():
        (name, *_) = re.findall(r"\basgi_ipc_\w+", target["expr"])
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels_of[name], title
    for rule in RULES:
        (name, *_) = re.findall(r"\basgi_ipc_\w+", rule["expr"])
        texts = "".join(rule["annotations"].values())
        used = set(re.findall(r"\$labels\.(\w+)", texts))
        assert used <= labels_of[name] | OF_THE_SERVER, rule["alert"]


def test_every_metric_is_shown(labels_of: dict[str, set[str]]) -> None:
    """Nothing is collected that no panel and no alert looks at."""
    shown = set(re.findall(r"\basgi_ipc_\w+", " ".join(expressions())))
    assert set(labels_of) - shown == {"asgi_ipc_build_info"}


def test_counters_are_only_asked_for_rates() -> None:
    """Their value alone says nothing, and restarts with the segment."""
    for expression in expressions():
        for counter in re.findall(r"asgi_ipc_\w+_total", expression):
            assert re.search(rf"rate\({counter}\b", expression), expression


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """It asks for its data source, and each panel is where no other one is."""
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["prefix"]["datasource"]["uid"] == "${datasource}"
    assert DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]),
                range(place["y"], place["y"] + place["h"]),
            )
        )
        assert place["x"] + place["w"] <= GRID_COLUMNS
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_panel_is_complete() -> None:
    """Of a kind every Grafana has, with a unit and queries of its data source."""
    for panel in PANELS:
        title = panel["title"]
        assert panel["type"] in KINDS, title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references), title
        assert panel["datasource"]["uid"] == "${datasource}", title
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"], title
            assert target["expr"].count("(") == target["expr"].count(")"), title
            assert "$prefix" in target["expr"] or "filesystem" in target["expr"], title


def test_every_alert_is_explained() -> None:
    """In the documentation, by name."""
    text = (DEPLOY.parent / "docs" / "metrics.md").read_text()
    for rule in RULES:
        assert rule["alert"] in text
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_every_metric_is_explained(labels_of: dict[str, set[str]]) -> None:
    """In the documentation, and nothing is explained that is not there."""
    text = (DEPLOY.parent / "docs" / "metrics.md").read_text()
    table = text.partition("### All metrics")[2].partition("\nTotals count")[0]
    told = set()
    for line in re.findall(r"^\| `.*", table, re.MULTILINE):
        told.update(re.findall(r"`(\w+)`", line.split(" | ")[0]))
    assert {f"asgi_ipc_{name}" for name in told} == set(labels_of)
