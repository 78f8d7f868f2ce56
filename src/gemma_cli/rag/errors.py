"""The error tree. Whatever this package raises on purpose derives from `GemmaRagError`.

    GemmaRagError
     ├── InvalidInputError            a value that no call may carry (also ValueError)
     │    └── InvalidTypeError        a value of the wrong type (also TypeError)
     ├── SettingsError                configuration: unknown key, wrong value (also ValueError)
     ├── BackendStateError            a verb before initialize() or after close() (also RuntimeError)
     ├── CapacityError                a tier that has no room: all of it pinned, or a document larger than it
     ├── QueueFullError               more waiting work than the queue may hold
     ├── MissingExtraError            an optional dependency is not installed (also ImportError)
     ├── DocumentError                a file that can't be ingested
     │    └── DocumentNotFoundError   it is not there (also FileNotFoundError)
     ├── ModelError
     │    ├── ModelNotFoundError      no weights anywhere
     │    ├── ModelDamagedError       weights that are not what they should be
     │    └── ModelMismatchError      the store holds another model's vectors
     └── StoreError
          ├── StoreUnavailableError   can't be reached or opened (also ConnectionError)
          ├── StoreBusyError          locked by another process for too long (also TimeoutError)
          ├── StoreFullError          no room on the disk or in the server
          ├── StoreDamagedError       a file that can't be read as a store
          │    └── StoreLostError     a server that has lost what it held
          └── StoreVersionError       a store of another program or of a newer version

Each message says what was wrong and what to do about it.
"""


class GemmaRagError(Exception):
    """Base class of every error that this package raises on purpose."""


class InvalidInputError(GemmaRagError, ValueError):
    """An argument that no call may carry; the message begins with the argument's name."""


class InvalidTypeError(InvalidInputError, TypeError):
    """An argument of the wrong type; the message begins with the argument's name."""


class SettingsError(GemmaRagError, ValueError):
    """A configuration file or variable holds an unknown key or a value out of range."""


class BackendStateError(GemmaRagError, RuntimeError):
    """A verb was called before `initialize()` or after `close()`."""


class CapacityError(GemmaRagError):
    """A tier is full and nothing in it may leave, or a document has more chunks than the tier holds."""


class QueueFullError(GemmaRagError):
    """More work is waiting than the queue may hold; try again later."""


class MissingExtraError(GemmaRagError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""


class DocumentError(GemmaRagError):
    """A file that can't be ingested: unreadable, binary, encrypted, empty, too large."""


class DocumentNotFoundError(DocumentError, FileNotFoundError):
    """The file to ingest is not there."""


class ModelError(GemmaRagError):
    """Something about the embedding model."""


class ModelNotFoundError(ModelError):
    """No weights were found in any of the places searched; the message lists them."""


class ModelDamagedError(ModelError):
    """The weights are not the ones that the model's name stands for."""


class ModelMismatchError(ModelError):
    """The store holds vectors of another model than the one in use."""


class StoreError(GemmaRagError):
    """Something about the store."""


class StoreUnavailableError(StoreError, ConnectionError):
    """The store can't be reached or opened."""


class StoreBusyError(StoreError, TimeoutError):
    """Another process held the store's lock for longer than the time limit."""


class StoreFullError(StoreError):
    """The disk or the server has no room left; nothing was stored."""


class StoreDamagedError(StoreError):
    """The file is not readable as a store; it was left as it is."""


class StoreLostError(StoreDamagedError):
    """What the store held is gone from the server, which has lost its data or was emptied. Raised once; the next call
    begins anew with an empty store."""


class StoreVersionError(StoreError):
    """The store was written by another program or by a newer version of this one."""
