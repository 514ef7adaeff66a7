"""The page about scaling is what its inputs give, and the arithmetic is that of the back of an envelope."""

import json
import re
from pathlib import Path

import pytest
import yaml

from benchmarks.scaling import DAY, MEASURED, PAGE, ROUTE, Assumptions, Costs, ceilings, measured, needs, page

ROOT = Path(__file__).parents[2]
# 0.5 ms of serving, 30 of the model, 1.5 of the bound: 32 in all
COSTS = Costs(serving=0.5e-3, model=30e-3, bound=1.5e-3, front=2000.0)


def test_the_page_is_what_its_inputs_give() -> None:
    """Otherwise: ``python -m benchmarks.scaling``."""
    assert PAGE.read_text("utf-8") == page(json.loads(MEASURED.read_text("utf-8")), Assumptions())


def test_a_thousand_requests_a_second_by_hand() -> None:
    found = needs(1000.0, COSTS, Assumptions(busy=0.5, replica_cores=2.0, gpu_seconds=1e-3, models=3))
    # 32 cores of work, twice as many at half use
    assert found.cores == pytest.approx(64.0)
    assert found.replicas == 32
    assert found.gpus == 2
    assert found.gpu_cores == pytest.approx(4.0)
    # 65,536 bytes are 524,288 bits
    assert found.bits == pytest.approx(524_288_000.0)
    assert found.nodes == 1
    # 32 replicas, 3 models, every 10 s
    assert found.store_reads == pytest.approx(9.6)


def test_a_billion_fields_a_day_by_hand() -> None:
    found = needs(1e9 / DAY, COSTS, Assumptions(busy=0.5))
    # 32e-3 s x 1e9 = 3.2e7 core-seconds = 370.4 core-days, twice that at half use
    assert found.cores == pytest.approx(740.7, abs=0.1)
    assert found.replicas == 371
    # 65,536e9 bytes
    assert found.stored == pytest.approx(65.536e12)
    # 6.07 Gbit/s on nodes of 5
    assert found.nodes == 2


def test_twice_the_rate_needs_twice_as_much() -> None:
    one, two = (needs(rate, COSTS, Assumptions()) for rate in (100.0, 200.0))
    for name in ("cores", "gpu_cores", "bits", "stored"):
        assert getattr(two, name) == pytest.approx(2 * getattr(one, name))


def test_what_saturates_first_comes_first() -> None:
    found = ceilings(COSTS, Assumptions(replica_cores=2.0, gpu_seconds=0.4e-3))
    # 2 / 32 ms, 1 / 1.5 ms, the front, 1 / 0.4 ms, 10e9 / 524,288
    assert [limit for _, limit in found] == pytest.approx([62.5, 666.7, 2000.0, 2500.0, 19_073.5], rel=1e-4)
    assert "model" in found[0][0]


def test_costs_are_those_of_the_report() -> None:
    report = json.loads(MEASURED.read_text("utf-8"))
    costs = measured(report, ROUTE)
    # the table of the serving benchmark, written by other code
    row = re.search(r"\| mno: \.npy \|.*", (ROOT / "docs" / "serving_benchmark.md").read_text("utf-8"))
    assert row
    medians = re.findall(r"\((.*?)\)", row[0])
    assert f"{1e3 * costs.serving:.3g}" == medians[-1]
    assert f"{costs.front:.0f}" == medians[2]


def test_a_replica_is_that_of_the_manifests() -> None:
    text = (ROOT / "deploy" / "k8s" / "base" / "deployment.yaml").read_text("utf-8")
    (container,) = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]
    assert float(container["resources"]["limits"]["cpu"]) == Assumptions().replica_cores
