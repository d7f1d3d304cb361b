"""Metrics: what events do to them, the same names in table, docs and dashboard, and a scrape of a real Ray."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from launcher.monitor.metrics import METRICS, RunMetrics, Update
from launcher.record.events import Event, Planned, Reported, Started
from launcher.record.tally import Line
from launcher.report import grafana
from tests.paths import REPOSITORY

LINE = Line(step=7, at=1.0, of=9, loss=0.5, tokens_per_s=100.0, step_s=0.25, wait_share=0.5)


@pytest.mark.parametrize(
    ("event", "lines", "wanted"),
    [
        (Started(0, 1.0, 12, "log"), [], []),
        (
            Started(0, 1.0, 12, "log"),
            [LINE],
            [
                ("step", 7), ("steps", 9), ("loss", 0.5),
                ("step_seconds", 0.25), ("tokens_per_second", 100), ("wait_ratio", 0.5),
            ],
        ),
        (Started(0, 1.0, 12, "log"), [Line(1, 1.0, None, None)], [("step", 1)]),
        (Planned(0, 1.0, {"predicted_s": 2.0}), [], [("plan_seconds", 2), ("plans_total", 1)]),
        (Planned(0, 1.0, {}), [], [("plans_total", 1)]),
    ],
)  # fmt: skip
def test_of_the_run(event: Event, lines: list[Line], wanted: list[tuple[str, float]]) -> None:
    assert RunMetrics(2).on(event, lines) == [Update(f"narrowgauge_{name}", value) for name, value in wanted]


def test_of_ranks() -> None:
    meter = RunMetrics(2)
    first = meter.on(Reported(0, 1.0, 5, tokens=30, wait_s=0.5, num_bytes=100, compute_s=0.25), [])
    assert [(update.metric, update.value, update.rank) for update in first] == [
        ("narrowgauge_compute_seconds_total", 0.25, 0),
        ("narrowgauge_wait_seconds_total", 0.5, 0),
        ("narrowgauge_message_bytes_total", 100, 0),
        ("narrowgauge_tokens_total", 30, 0),
    ]
    second = meter.on(Reported(1, 1.0, 5, tokens=10), [])
    assert [(update.metric, update.value, update.rank) for update in second] == [
        ("narrowgauge_tokens_total", 10, 1),
        ("narrowgauge_batch_ratio", 0.75, 0),
        ("narrowgauge_batch_ratio", 0.25, 1),
    ]


def test_the_dashboard_asks_only_for_documented_names() -> None:
    dashboard = json.loads(grafana())
    known = {metric.name: metric for metric in METRICS}
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"ray_(\w+)\{", query)}
    assert asked == set(known)
    for query in queries:
        for name in re.findall(r"rate\(ray_(\w+)", query):
            assert known[name].kind == "counter"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert "label_values(ray_narrowgauge_step, run)" in json.dumps(dashboard)


SCRAPED = """
import json, sys, time, urllib.request
import ray
from launcher.run.cluster import Cluster
from launcher.record.events import Planned, Reported
from launcher.config.job import Job
from launcher.planning.placement import place
from launcher.monitor.prometheus import RayMetrics
from launcher.record.tally import Tally

job = Job.model_validate({"name": "scraped", "entrypoint": "x.py", "workers": {"count": 2, "hosts": 2}})
with Cluster(job) as cluster:
    seats = place(cluster.nodes(), job.workers, emulate_hosts=True)
    metrics, tally = RayMetrics("scraped-1", seats), Tally(2)
    events = [Planned(0, 1.0, {"predicted_s": 0.5})]
    events += [Reported(rank, step, step, of=3, loss=2.0, tokens=8, wait_s=0.25, num_bytes=1000, compute_s=0.5)
               for step in (1, 2) for rank in (0, 1)]
    for event in events:
        metrics.on(event, tally.on(event))
    port = ray.nodes()[0]["MetricsExportPort"]
    found = {}
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and len(found) < 18:
        time.sleep(1)
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=100).read().decode()
        for line in text.splitlines():
            if line.startswith("ray_narrowgauge_"):
                name, _, rest = line.partition("{")
                tags, _, value = rest.rpartition("} ")
                mine = dict(tag.split("=") for tag in tags.split(",") if tag.split("=")[0] in ("run", "rank", "host"))
                found[json.dumps([name, {key: text.strip('"') for key, text in mine.items()}])] = float(value)
    print(json.dumps([[*json.loads(key), value] for key, value in found.items()]))
"""


@pytest.mark.slow
def test_prometheus_sees_them() -> None:
    """In a process of its own, since a test process should not keep Ray's threads."""
    done = subprocess.run(
        [sys.executable, "-c", SCRAPED], cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    run, ranks = {"run": "scraped-1"}, [{"run": "scraped-1", "rank": str(n), "host": f"host-{n}"} for n in (0, 1)]
    wanted = [
        ("step", run, 2), ("steps", run, 3), ("loss", run, 2), ("step_seconds", run, 1),
        ("tokens_per_second", run, 16), ("wait_ratio", run, 0.25), ("plan_seconds", run, 0.5), ("plans_total", run, 1),
        *(("compute_seconds_total", rank, 1) for rank in ranks), *(("wait_seconds_total", rank, 0.5) for rank in ranks),
        *(("message_bytes_total", rank, 2000) for rank in ranks), *(("tokens_total", rank, 16) for rank in ranks),
        *(("batch_ratio", rank, 0.5) for rank in ranks),
    ]  # fmt: skip
    key = str
    assert sorted(found, key=key) == sorted(
        ([f"ray_narrowgauge_{name}", tags, value] for name, tags, value in wanted), key=key
    )
