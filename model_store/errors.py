"""What can be wrong with a model store.

StoreError
├── InvalidStoreUrl         the URL names no store that can be opened
├── ReadOnlyStore           somebody wanted to write into the built-in models
├── StoreUnreachable        an object store does not answer, now
├── AccessRefused           an object store answers, and not to these credentials
├── UnsafeStore             an object store ignores the conditions that keep writers apart
├── UnknownModel            no version of that name
│   └── InvalidReference    the text cannot name a model at all
├── UnknownVersion          the model is there, that version or alias is not
├── RefusedVersion          a state or card that must not become a version
├── AliasMoved              the alias was not where the caller expected it
├── CorruptStore            a file of the store's own is damaged, or a version is half there
└── CorruptVersion          a version's bytes are not what its card says
"""


class StoreError(Exception):
    """Base of everything that a model store raises on purpose."""


class InvalidStoreUrl(StoreError, ValueError):
    """The URL names no store that can be opened."""


class ReadOnlyStore(StoreError):
    """This store takes no changes."""


class StoreUnreachable(StoreError):
    """The object store does not answer now; what was being written may or may not be there."""


class AccessRefused(StoreError):
    """The object store does not let these credentials do that."""


class UnsafeStore(StoreError):
    """The object store ignores conditions of writes: two publishers would overwrite each other."""


class UnknownModel(StoreError, LookupError):
    """The store has no version of a model of that name."""


class InvalidReference(UnknownModel, ValueError):
    """The text is not ``name``, ``name@alias`` or ``name@number``, so no store can hold it."""


class UnknownVersion(StoreError, LookupError):
    """The model has no such version or alias."""


class RefusedVersion(StoreError, ValueError):
    """The state, card or files cannot become a version."""


class AliasMoved(StoreError):
    """The alias does not point where the caller expected it to."""


class CorruptStore(StoreError):
    """A file of the store's own is damaged."""


class CorruptVersion(StoreError):
    """A version's bytes are missing, or not what its card says."""
