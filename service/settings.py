"""Settings of the service: defaults, then a TOML file, then ``MNO_*`` variables, then command-line flags."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict, SettingsError
from pydantic_settings.sources import PydanticBaseSettingsSource

from model_store.cache import CachePlace
from service.access.rate import RateSettings
from service.access.security import SecuritySettings
from service.access.tls import TlsSettings
from service.errors import InvalidSettings
from service.telemetry.logs import LogSettings
from service.telemetry.tracing import TracingSettings

__all__ = ["Batching", "Imported", "InvalidSettings", "Limits", "Settings", "read_settings"]

PREFIX = "MNO_"
NESTING = "__"


@final
class Limits(BaseModel):
    """What one request may ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes: int = Field(
        default=64 * 2**20, gt=0, description="largest request body, also after decompression"
    )
    json_bytes: int = Field(
        default=24 * 2**20,
        gt=0,
        description="largest JSON body, likewise: a field of 1024 x 1024; others wait while it is parsed",
    )
    inflight_bytes: int = Field(
        default=512 * 2**20,
        gt=0,
        description="bodies under way together, JSON counts 16 times; as much again for derivatives",
    )
    batch: int = Field(default=256, gt=0, description="fields in one request")
    grid_side: int = Field(default=1024, gt=0, description="cells along one side of a grid")
    rollout_steps: int = Field(default=1000, gt=0, description="steps of one rollout")
    gradient_steps: int = Field(
        default=100,
        gt=0,
        description="steps of a derivative through a rollout, those of all its directions together",
    )
    cell_steps: int = Field(
        default=3 * 10**8,
        gt=0,
        description="cells times steps of the reference solver within one frame of a rollout, "
        "or for the comparisons of a block",
    )
    stall_seconds: float = Field(
        default=60.0, gt=0, description="how long a client may leave a frame of its rollout unread"
    )
    header_seconds: float = Field(default=1.0, gt=0, description="how long a client may take for its headers")
    body_stall_seconds: float = Field(
        default=10.0, gt=0, description="longest pause of a client within its body"
    )
    body_seconds: float = Field(default=300.0, gt=0, description="how long a client may take for its body")
    headers: int = Field(default=100, gt=0, description="headers of a request")
    header_bytes: int = Field(default=32 * 2**10, gt=0, description="headers of a request, and its address")
    idle_seconds: int = Field(default=75, gt=0, description="how long a connection may be idle")
    connections: int = Field(default=2000, gt=0, description="connections open at once, of one front")


@final
class Batching(BaseModel):
    """How requests are put together, and how many may wait."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch: int = Field(default=32, gt=0, description="fields computed together")
    linger_ms: float = Field(
        default=2.0, ge=0, description="longest wait for company, where company can be expected [ms]"
    )
    queue_bytes: int = Field(default=256 * 2**20, gt=0, description="input fields that wait or are computed")
    queue_rows: int = Field(default=2**14, gt=0, description="fields that wait or are computed")
    queue_seconds: float = Field(default=30.0, gt=0, description="longest expected waiting time")
    sizes: tuple[PositiveInt, ...] = Field(
        default=(), description="batches are filled up to the next of these numbers of fields; empty: never"
    )
    reproducible_batch: int = Field(
        default=1, gt=0, description="the one number of fields that reproducible requests are computed by"
    )
    bulk_patience_seconds: float = Field(
        default=1.0, ge=0, description="how long bulk requests let interactive ones go first"
    )


@final
class Imported(BaseModel):
    """A model that is no version of a store: what a function of an installed package returns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    function: str = Field(pattern=r"^[\w.]+:\w+$", description="`package.module:function`")
    arguments: Mapping[str, Any] = Field(default={}, description="what the function is called with")


def _comma_separated(value: object) -> object:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


@final
class Settings(BaseSettings):
    """All settings. Only entry points read the environment, through :func:`read_settings`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter=NESTING
    )

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    http_port: int = Field(default=8080, ge=0, le=65535, description="0 takes a free port")
    grpc: bool = Field(default=True, description="answer gRPC too")
    grpc_port: int = Field(default=8081, ge=0, le=65535, description="0 takes a free port")
    processes: Literal["workers", "none"] = Field(
        default="workers",
        description="workers: fronts and models in processes of their own; none: one for all",
    )
    fronts: int = Field(default=1, gt=0, le=64, description="processes that answer HTTP and gRPC")
    store: str | None = Field(
        default=None, description="URL of a model store; goes before the built-in models"
    )
    store_cache: str = Field(
        default="~/.cache/mno",
        description="folder that keeps what was read of a store behind a network; empty: nothing is kept",
    )
    store_cache_bytes: int = Field(
        default=4096 * 2**20, gt=0, description="how much of versions' files it keeps; the oldest go first"
    )
    models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)] = Field(
        default=(), description="models to load, comma-separated: `darcy,darcy@3`; empty: all"
    )
    imported: Mapping[str, Imported] = Field(
        default={}, description="models that functions of installed packages return, by name"
    )
    alias_poll_seconds: float = Field(
        default=10.0, gt=0, description="how often the aliases are read; SIGHUP reads them at once"
    )
    load_seconds: float = Field(
        default=300.0, gt=0, description="how long a process may take to be ready; then it is started again"
    )
    retire_seconds: float = Field(
        default=600.0, gt=0, description="how long a version that was replaced finishes its rollouts"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where models compute; auto: on the GPU, if there is one"
    )
    threads: int | None = Field(
        default=None, gt=0, description="CPU threads of the model; default: all cores but one"
    )
    scan_backend: str | None = Field(
        default=None, description="backend of the selective scan; default: the fastest that can"
    )
    grace_seconds: int = Field(default=30, gt=0, description="how long SIGTERM waits for accepted requests")
    drain_delay_seconds: float = Field(
        default=0.0, ge=0, description="how long SIGTERM leaves balancers to notice, before nobody is let in"
    )
    arena_bytes: int = Field(
        default=1024 * 2**20, gt=0, description="memory that a front shares with the workers, taken as needed"
    )
    limits: Limits = Limits()
    batching: Batching = Batching()
    security: SecuritySettings = SecuritySettings()
    tls: TlsSettings = TlsSettings()
    rate: RateSettings = RateSettings()
    tracing: TracingSettings = TracingSettings()
    logs: LogSettings = LogSettings()

    @property
    def kept(self) -> CachePlace | None:
        """Where what is read of a store behind a network is kept."""
        try:
            folder = Path(self.store_cache).expanduser()
        except RuntimeError:
            # this user has no home
            return None
        return CachePlace(folder, self.store_cache_bytes) if self.store_cache else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only: an object that reads the environment by itself cannot be passed around safely."""
        return (init_settings,)


def read_settings(
    config: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any] | None = None
) -> Settings:
    """Settings from a TOML file, ``MNO_*`` variables and flags that are not None; the later wins.

    Raises:
        InvalidSettings: an unknown name or a bad value.
    """
    _refuse_unknown(environment)
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in environment.items()}
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        return Settings(**_merged(_merged(_read_toml(config), source()), given))
    except ValidationError as error:
        raise InvalidSettings(_one_line(error)) from error
    except SettingsError as error:  # a variable for a whole section that holds no JSON
        raise InvalidSettings(
            f"{error}; expected JSON, or one variable a setting: MNO_LIMITS__BATCH"
        ) from error


def _read_toml(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        return tomllib.loads(config.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidSettings(f"{config}: expected a TOML file: {error}") from error


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        both_nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both_nested else value
    return merged


def _variables(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        variable = prefix + name.upper()
        yield variable
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables(field.annotation, variable + NESTING)


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = list(_variables(Settings, PREFIX))
    for variable in environment:
        if variable.upper().startswith(PREFIX) and variable.upper() not in known:
            near = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=0.0)[0]
            raise InvalidSettings(f"{variable} is not a setting; the nearest is {near}. Unset or rename it.")


def _one_line(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}, got {issue['input']!r}"
        for issue in error.errors()
    )
