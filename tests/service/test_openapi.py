"""The OpenAPI document tells the truth: whatever it lets somebody send, it says what comes back."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

# no schema says which fields a solver takes, so that good ones may be refused
BY_NAME = """
[parameters]
problem = "{problem}"
name = "darcy"
model = "{model}"
version = "1"

[checks]
positive_data_acceptance.enabled = false
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 501]
"""


def schemathesis(folder: Path, address: str, config: str, *arguments: str) -> None:
    """Run it as its users do; its own plugin for pytest does not know the present pytest."""
    (folder / "schemathesis.toml").write_text(config)
    command = [str(Path(sys.executable).with_name("st")), "--config-file", "schemathesis.toml", "run"]
    chosen = ["--generation-deterministic", "--no-color", "--warnings", "off", *arguments]
    done = subprocess.run(
        [*command, f"{address}/openapi.json", *chosen],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_what_is_described_is_what_happens(address: str, tmp_path: Path) -> None:
    schemathesis(tmp_path, address, "", "--phases", "examples,coverage,fuzzing", "--max-examples", "20")


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["darcy", "shallow_water"])
def test_nothing_breaks_behind_names_that_exist(address: str, tmp_path: Path, problem: str) -> None:
    arguments = ["--phases", "coverage,fuzzing", "--max-examples", "50"]
    # the model stays loaded for other tests
    arguments += ["--exclude-path-regex", "/v2/repository/models/"]
    schemathesis(tmp_path, address, BY_NAME.format(problem=problem, model="darcy"), *arguments)


def test_every_route_is_described_with_its_answers(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    problem = "/v1/problems/{problem}"
    some = {f"{problem}/{each}" for each in ("solve", "vjp", "jvp", "quantities", "rollout")}
    some |= {"/v2/models/{model}/infer"}
    assert some <= set(paths)
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation["description"], (path, method)
            kind = "application/json" if path.startswith("/v2") else "application/problem+json"
            assert kind in operation["responses"]["default"]["content"], (path, method)


def test_a_wrong_method_is_told_all_right_ones(http: httpx.Client) -> None:
    answer = http.put("/v1/problems/darcy/solve")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert http.put("/v2/models/darcy").headers["allow"] == "GET"
