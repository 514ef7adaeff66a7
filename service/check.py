"""Whether a service could start with its settings, without starting it."""

from __future__ import annotations

import os
from pathlib import Path

from service.access.security import open_security
from service.access.tls import Tls
from service.errors import InvalidSettings
from service.settings import Settings
from service.telemetry.tracing import open_tracer

__all__ = ["check", "check_files", "check_imported"]


def check_files(settings: Settings) -> None:
    """Read what the settings name, but for the stores: tokens, certificates, the exporter of traces.

    Raises:
        InvalidSettings: something is missing or broken.
    """
    Tls.of(settings.tls)
    open_security(settings.security, settings.host, mutual_tls=settings.tls.client_ca is not None)
    open_tracer(settings.tracing, "check").close()
    if settings.security.audit is not None:
        _require_writable(settings.security.audit)


def check_imported(settings: Settings) -> None:
    """Refuse models that nobody would serve.

    Raises:
        InvalidSettings: there are some.
    """
    if settings.imported and settings.processes == "none":
        raise InvalidSettings(
            f"imported: expected processes=workers with {', '.join(settings.imported)}, got none; a function "
            "of somebody else's runs in a process of its own only"
        )


def check(settings: Settings) -> None:
    """Read what the settings name, the models' names in the stores too.

    Raises:
        InvalidSettings: something is missing or broken.
    """
    check_imported(settings)
    check_files(settings)
    # imported here: it takes seconds, and the supervisor can do without
    from model_store import StoreError, open_catalog
    from service.versions.stores import require_atomic_writes, table_of

    try:
        catalog = open_catalog(settings.store)
        require_atomic_writes(catalog)
        names = [name for name in settings.models if name not in settings.imported]
        table_of(catalog, names or catalog.models())
    except StoreError as error:
        raise InvalidSettings(f"store: {error}") from error


def _require_writable(path: Path) -> None:
    folder = path if path.exists() else path.parent
    if not os.access(folder, os.W_OK):
        raise InvalidSettings(f"security.audit: expected a file that can be written, got {path}")
