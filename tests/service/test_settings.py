"""Where settings come from, which wins, and that nothing unknown slips through."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import InvalidSettings, Settings, read_settings


def test_flags_win_over_variables_over_the_file_over_defaults(tmp_path: Path) -> None:
    config = tmp_path / "service.toml"
    config.write_text('host = "0.0.0.0"\nhttp_port = 1\n[limits]\nbatch = 3\ngrid_side = 64\n')
    variables = {"MNO_HTTP_PORT": "2", "MNO_LIMITS__BATCH": "4", "MNO_MODELS": "darcy, darcy@3", "HOME": "/"}
    settings = read_settings(config, variables, {"http_port": 5, "device": None})
    assert (settings.host, settings.http_port, settings.device) == ("0.0.0.0", 5, "auto")
    assert (settings.limits.batch, settings.limits.grid_side) == (4, 64)
    assert settings.models == ("darcy", "darcy@3")
    assert settings.limits.body_bytes == 64 * 2**20


def test_the_defaults_are_the_contract_s() -> None:
    settings = read_settings(None, {})
    assert (settings.host, settings.http_port, settings.grpc_port) == ("127.0.0.1", 8080, 8081)
    assert (settings.processes, settings.fronts) == ("workers", 1)
    assert settings.limits.rollout_steps == 1000
    assert (settings.limits.body_bytes, settings.limits.batch, settings.limits.grid_side) == (
        2**26,
        256,
        1024,
    )
    # enough for one field of the largest grid, with all its digits
    assert 20 * settings.limits.grid_side**2 <= settings.limits.json_bytes < settings.limits.body_bytes


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [("MNO_HTTPPORT", "MNO_HTTP_PORT"), ("MNO_LIMITS__BACH", "MNO_LIMITS__BATCH"), ("mno_stor", "MNO_STORE")],
)
def test_an_unknown_variable_stops_the_start_and_names_the_nearest(variable: str, nearest: str) -> None:
    with pytest.raises(InvalidSettings, match=nearest):
        read_settings(None, {variable: "1"})


@pytest.mark.parametrize(
    "text", ["htp_port = 1", "http_port = 'x'", "http_port = 70000", "[limits]\nbatch = 0", "= 1"]
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    config = tmp_path / "service.toml"
    config.write_text(text)
    with pytest.raises(InvalidSettings) as refusal:
        read_settings(config, {})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "processes = 'threads'",
        "fronts = 0",
        "[rate]\nrequests_per_second = inf",
        "alias_poll_seconds = 0",
        "drain_delay_seconds = -1",
        "[batching]\nlinger_ms = -1",
        "[imported.null]\nfunction = 'no function'",
        "[imported.null]\nfunction = 'models:null'\nother = 1",
    ],
)
def test_processes_that_make_no_sense_are_refused(tmp_path: Path, text: str) -> None:
    config = tmp_path / "service.toml"
    config.write_text(text)
    with pytest.raises(InvalidSettings):
        read_settings(config, {})


def test_settings_travel_between_processes(tmp_path: Path) -> None:
    config = tmp_path / "service.toml"
    config.write_text(
        "fronts = 3\nmodels = ['darcy']\n[imported.null]\nfunction = 'models:null'\narguments = {rows = 2}\n"
    )
    settings = read_settings(config, {"MNO_SECURITY__TOKENS": "tokens.toml"})
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings


def test_a_bad_variable_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="device"):
        read_settings(None, {"MNO_DEVICE": "tpu"})


def test_settings_ignore_the_environment_and_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNO_HTTP_PORT", "1")
    settings = Settings()
    assert settings.http_port == 8080
    with pytest.raises(ValidationError):
        settings.http_port = 2
