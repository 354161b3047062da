"""The page, the dashboard, the alerts and their runbook speak of metrics that there are."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

from perseusd.exporter.definitions import METRICS

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "monitoring" / "grafana" / "perseusd.json"
RULES = ROOT / "monitoring" / "prometheus" / "perseusd.rules.yml"
RUNBOOK = ROOT / "docs" / "monitoring.md"


def series() -> dict[str, set[str]]:
    """Every name that a sample can have, with its labels."""
    known: dict[str, set[str]] = {}
    for metric in METRICS:
        labels = set(metric.labels)
        if metric.kind == "histogram":
            known |= {f"{metric.name}_{part}": labels for part in ("count", "sum")}
            known[f"{metric.name}_bucket"] = labels | {"le"}
        else:
            known[metric.name] = labels
    return known


def check(expression: str) -> set[str]:
    """Names and labels are known; the names."""
    known = series()
    used = re.findall(r"\b(perseusd_\w+)(?:\{([^}]*)\})?", expression)
    assert used or 'up{job="perseusd"}' in expression, expression
    for name, selectors in used:
        assert name in known, expression
        labels = set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", selectors))
        assert labels <= known[name] | {"instance", "job"}, expression
    return {name for name, _ in used}


def test_the_page_is_current() -> None:
    """Run scripts/metrics after a change."""
    made = runpy.run_path(str(ROOT / "scripts" / "metrics"))["page"]()
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == made


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    """In every expression and variable; and its panels lie beside each other."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    queries = [
        variable["definition"]
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    ]
    assert len(expressions) > 30
    assert len(queries) == 2
    for expression in expressions + queries:
        assert check(expression)
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_every_alert_is_of_metrics_that_there_are_and_has_a_runbook() -> None:
    """Its section in docs/monitoring.md, by the name that the alert links to."""
    text = RULES.read_text(encoding="utf-8")
    alerts = re.findall(r"- alert: (\w+)\n +expr: (.+)\n", text)
    assert len(alerts) == text.count("alert:")
    headings = re.findall(r"^### (\w+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in alerts] == headings
    for name, expression in alerts:
        check(expression)
        assert f"runbook_url: docs/monitoring.md#{name.lower()}\n" in text
