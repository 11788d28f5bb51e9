"""What docs/ gives to operators of Prometheus and Grafana: does it fit the metrics?"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.models import Channel, Node, ResourceVersion, State, Tally, Watch, database_now
from jobs.monitoring import metrics, tallies
from tests.servers import ROOT

DOCUMENT = (ROOT / "docs" / "metrics.md").read_text()
RULES = ROOT / "docs" / "monitoring" / "alerts.yml"
DASHBOARD = json.loads((ROOT / "docs" / "monitoring" / "grafana-dashboard.json").read_text())
FUNCTIONS = {
    *("max", "sum", "by", "topk", "rate", "increase", "absent", "histogram_quantile"),
    *("and", "or", "unless", "label_values"),
}
DURATION = re.compile(r"\[(?:\d+[smhd]|\$__rate_interval)\]")
FILTER = re.compile(r'\{((?:\w+(?:=|!=|=~|!~)"[^"]*",?)*)\}')

pytestmark = pytest.mark.django_db


@pytest.fixture
def text() -> str:
    """A scrape in which every metric has a sample."""
    buckets = [1] * (len(tallies.BOUNDS) + 1)
    for metric in (tallies.RUNS, tallies.SKIPPED, tallies.PUBLISH_FAILURES, *tallies.MEASURED):
        labels = {tallies.RUNS: ["tests.nothing", "failed"], tallies.PUBLISH_FAILURES: []}.get(
            metric, ["tests.nothing"]
        )
        is_histogram = metric in tallies.MEASURED
        Tally.objects.create(metric=metric, labels=json.dumps(labels), count=3, buckets=buckets if is_histogram else [])
    Node.objects.create(name="celery@a", kind=Node.Kind.WORKER, pid=1, queues="celery")
    ResourceVersion.objects.create(name="rates")
    Channel.objects.create(name="it")
    Watch.objects.update_or_create(defaults={"looked_at": database_now()})
    return metrics.text().decode()


@pytest.fixture
def families(text) -> dict[str, tuple[str, set[str]]]:
    """The type and the labels of each metric."""
    found: dict[str, tuple[str, set[str]]] = {}
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE):
        samples = re.findall(rf"^{name}(?:_bucket|_count|_sum)?(?:\{{(.*)\}})? \S+$", text, re.MULTILINE)
        assert samples, name
        found[name] = kind, {label for labels in samples for label in re.findall(r'(\w+)="', labels)}
    return found


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if not found:
        pytest.skip("promtool is not installed: its tests need it (Debian: apt install prometheus).")
    return found


def alerts() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from group["rules"]


def expressions() -> list[str]:
    """All expressions of the dashboard and of the alert rules."""
    of_panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    of_variables = [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    return [*of_panels, *of_variables, *(alert["expr"] for alert in alerts())]


def names_in(expression: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels of an expression."""
    labels = {name for each in FILTER.findall(expression) for name in re.findall(r'(\w+)(?:=|!=|=~|!~)"', each)}
    rest = DURATION.sub("", FILTER.sub("", expression))
    for each in re.findall(r"\bby \(([^)]*)\)", rest):
        labels |= set(re.findall(r"\w+", each))
    rest = re.sub(r"\bby \([^)]*\)", "", rest)
    words = set(re.findall(r"\b[a-zA-Z_]\w*\b", rest)) - FUNCTIONS
    ours = {word for word in words if word.startswith("punctual_")}
    return ours, labels | (words - ours)


def test_it_documents_every_metric_with_its_type_and_labels(families):
    rows = re.findall(r"^\| `(punctual_\w+)` \| (\w+) \| (.*?) ?\| .+ \|$", DOCUMENT, re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert documented == {name: (kind, labels - {"le"}) for name, (kind, labels) in families.items()}
    assert len(rows) == len(documented)


def test_it_names_units_and_explains_every_metric(text, families):
    explained = dict(re.findall(r"^# HELP (\w+) (.+)$", text, re.MULTILINE))
    assert explained.keys() == families.keys()
    for name, (kind, _) in families.items():
        assert re.fullmatch(r"punctual_[a-z_]+", name)
        assert name.endswith("_total") == (kind == "counter")
        assert (kind != "histogram") or name.endswith("_seconds")
        assert re.match(r"(1|[A-Z]).+\.$", explained[name])


def test_it_uses_only_our_metrics_and_their_labels_in_dashboard_and_rules(families):
    known = {name: labels for name, (_, labels) in families.items()}
    for name, (kind, labels) in families.items():
        if kind == "histogram":
            known |= {f"{name}_{part}": labels for part in ("bucket", "sum", "count")}
            del known[name]
    assert len(expressions()) > 30
    for expression in expressions():
        used, labels = names_in(expression)
        assert used, expression
        assert used <= known.keys(), expression
        assert labels <= set().union(*(known[name] for name in used)), expression


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("rate(punctual_x_total[5m])", ({"punctual_x_total"}, set())),
        ('max by (a, b) (punctual_x{c="d e",f!~"g|h"}) > 0 and foo', ({"punctual_x"}, {"a", "b", "c", "f", "foo"})),
    ],
)
def test_it_finds_the_names_in_an_expression(expression, names):
    assert names_in(expression) == names


def test_it_names_only_values_of_labels_that_exist(families):
    values = {*State.values, *Node.Kind.values, "live", "silent"}
    health = set(re.findall(r'health="(\w+)"', metrics.text().decode()))
    for expression in expressions():
        for value in re.findall(r'="([\w|]+)"|[=!]~"([\w|]+)"', expression):
            assert set("".join(value).split("|")) <= values | health, expression


def test_it_loads_as_a_dashboard_whose_panels_have_places_and_queries():
    panels = DASHBOARD["panels"]
    assert DASHBOARD["title"] == "Punctual"
    assert len({panel["id"] for panel in panels}) == len(panels) > 15
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        area = {(place["x"] + across, place["y"] + down) for across in range(place["w"]) for down in range(place["h"])}
        assert not taken & area, panel["title"]
        assert max(across for across, _ in area) < 24
        taken |= area
        assert panel["type"] in {"stat", "timeseries"}
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_it_says_in_every_alert_what_happened_and_what_to_do():
    for alert in alerts():
        assert set(alert["annotations"]) == {"summary", "description"}
        assert all(text.endswith(".") for text in alert["annotations"].values())
        assert alert["labels"]["severity"] in {"critical", "warning"}


# --- By Prometheus itself -------------------------------------------------------------------------------------------


def run(promtool: str, *words: str, given: str = "", folder: Path = ROOT) -> str:
    """What it prints. It must exit with 0."""
    done = subprocess.run([promtool, *words], input=given, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_passes_the_check_of_metrics(promtool, text):
    assert run(promtool, "check", "metrics", given=text) == ""


def test_it_passes_the_check_of_rules(promtool, tmp_path):
    run(promtool, "check", "rules", str(RULES))
    # The expressions of the dashboard as rules, for their syntax.
    of_panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    filled = [each.replace("$__rate_interval", "5m").replace("$task", ".*") for each in of_panels]
    rules = [{"record": f"it:{number}", "expr": each} for number, each in enumerate(filled)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run(promtool, "check", "rules", str(tmp_path / "rules.yml"))


def test_it_raises_the_alerts_of_a_system_at_a_standstill_and_none_of_a_healthy_one(promtool, tmp_path):
    """Two web processes are scraped, which give the same figures."""
    ill = {
        'punctual_nodes{kind="beat",state="live"': ("0x20", "1x20"),
        'punctual_nodes{kind="worker",state="live"': ("0x20", "1x20"),
        'punctual_queue_runs{queue="slow"': ("5x20", "0x20"),
        'punctual_queue_consumers{queue="slow"': ("0x20", "1x20"),
        'punctual_queue_oldest_seconds{queue="slow"': ("900x20", "1x20"),
        'punctual_schedules_by_health{health="failing"': ("2x20", "0x20"),
        'punctual_schedules_by_health{health="paused"': ("2x20", "2x20"),
        'punctual_runs_ended_total{task="a",outcome="failed"': ("0+3x60", "0+1x60"),
        'punctual_runs_ended_total{task="a",outcome="succeeded"': ("0+1x60", "0+3x60"),
        "punctual_publish_failures_total{": ("0+1x20", "3x20"),
        "punctual_beat_lag_seconds{": ("90x20", "1x20"),
        "punctual_dispatch_lag_seconds{": ("90x20", "1x20"),
        "punctual_watch_age_seconds{": ("900x20", "5x20"),
        "punctual_channels_failing{": ("1x20", "0x20"),
        "punctual_parts_down{": ("1x20", "0x20"),
        "punctual_build_info{": ("1x20", "1x20"),
    }
    names = [alert["alert"] for alert in alerts()]
    expected = (set(names) - {"PunctualHasNoMetrics"}, set())
    tests = []
    for column in (0, 1):
        series = [
            {
                "series": f'{name}{"," if not name.endswith("{") else ""}instance="{instance}"}}',
                "values": values[column],
            }
            for name, values in ill.items()
            for instance in ("one", "two")
        ]
        checks = {"interval": "1m", "input_series": series, "promql_expr_test": []}
        for name in names:
            query = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
            samples = [{"labels": "{}", "value": 1}] if name in expected[column] else []
            checks["promql_expr_test"].append({"expr": query, "eval_time": "18m", "exp_samples": samples})
        tests.append(checks)
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    run(promtool, "test", "rules", str(file))
