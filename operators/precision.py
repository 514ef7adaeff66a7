"""Parts that compute in float32 whatever precision the rest of a network runs in."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Autocast off; an exported graph has none to switch off, and cannot be saved with such a region."""
    if torch.compiler.is_exporting():
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
