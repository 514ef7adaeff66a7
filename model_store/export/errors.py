"""What can be wrong with an export.

StoreError
├── CannotExport    a part of the operator has no form in such a file
└── Disagrees       the file was written and does not compute what the version computes
"""

from model_store.errors import StoreError


class CannotExport(StoreError, ValueError):
    """A part of the operator has no form in such a file."""


class Disagrees(StoreError):
    """What was written does not compute what the version computes."""
