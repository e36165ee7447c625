"""What Prometheus and Grafana are given is what they take, and asks for what we offer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from .shapes import ROOT

MONITORING = ROOT / "cluster" / "monitoring"
METERS = ROOT / "pmm_ray" / "runtime" / "mapping" / "meters.py"
SUFFIXES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}


def offered() -> set[str]:
    """Names as Ray exports them."""
    found = re.findall(r'(Counter|Gauge|Histogram)\("(pmm_\w+)"', METERS.read_text())
    assert len(found) == 5
    return {f"ray_{name}{suffix}" for kind, name in found for suffix in SUFFIXES[kind]}


def dashboard() -> dict[str, Any]:
    return dict(json.loads((MONITORING / "dashboard.json").read_text()))


def expressions() -> list[str]:
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    found = [rule["expr"] for group in rules for rule in group["rules"]]
    return found + [target["expr"] for p in dashboard()["panels"] for target in p["targets"]]


def test_they_ask_for_metrics_that_are_offered() -> None:
    asked = {name for text in expressions() for name in re.findall(r"ray_pmm_\w+", text)}
    assert asked <= offered()
    # the five are all shown
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked} == {
        re.sub(r"_(total|bucket|sum|count)$", "", name) for name in offered()
    }


def test_prometheus_may_reach_on_kubernetes_what_it_is_told_to_read() -> None:
    [port] = re.findall(r"port `metrics` (\d+)", (MONITORING / "prometheus.yml").read_text())
    text = (ROOT / "cluster" / "kuberay" / "networkpolicy.yaml").read_text()
    rules = yaml.safe_load(text)["spec"]["ingress"]
    from_elsewhere = {
        (source["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], open_["port"])
        for rule in rules
        for source in rule["from"]
        for open_ in rule.get("ports", [])
    }
    assert ("monitoring", int(port)) in from_elsewhere
    # nothing else is open
    assert from_elsewhere == {("monitoring", int(port)), ("ray-system", 8265)}


def lost(given: Any, kept: Any, at: str = "") -> list[str]:
    """What a reader of Grafana's schema did not take."""
    if isinstance(given, dict) and isinstance(kept, dict):
        missing = [f"{at}/{key}" for key in given if key not in kept]
        both = [key for key in given if key in kept]
        return missing + [x for key in both for x in lost(given[key], kept[key], f"{at}/{key}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [
            line
            for n, (one, other) in enumerate(zip(given, kept, strict=True))
            for line in lost(one, other, f"{at}[{n}]")
        ]
    return [] if given == kept else [at]


def read_back(given: dict[str, Any]) -> dict[str, Any]:
    register_default_plugins()
    return dict(json.loads(json.dumps(Dashboard.from_json(given), cls=JSONEncoder)))


def test_grafanas_schema_takes_the_dashboard() -> None:
    given = dashboard()
    assert lost(given, read_back(given)) == []
    # the check can fail
    given["panels"][0]["gridpos"] = {"h": 1}
    assert lost(given, read_back(given)) == ["/panels[0]/gridpos"]
    places = [tuple(p["gridPos"].values()) for p in dashboard()["panels"]]
    assert len({*places}) == len(places)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is no Python package: apt-get install prometheus")
    return subprocess.run([found, *arguments], capture_output=True, text=True, cwd=MONITORING)


def test_prometheus_takes_its_file_and_the_rules(tmp_path: Path) -> None:
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stderr
    assert "3 rules found" in done.stdout
    (tmp_path / "wrong.yml").write_text("scrape_configs: [{job: ray}]")
    assert promtool("check", "config", str(tmp_path / "wrong.yml")).returncode != 0


def test_what_rules_and_dashboard_ask_is_promql() -> None:
    for text in expressions():
        promql_parser.parse(text)
    # the check can fail
    with pytest.raises(ValueError, match="unclosed"):
        promql_parser.parse("sum(")
