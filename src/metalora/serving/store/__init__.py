"""Where the service keeps tenants, tasks and examples: one interface, SQLite or Postgres."""

from metalora.serving.store.base import (
    Example,
    KeyReused,
    LimitReached,
    NewTask,
    Store,
    StoredTask,
    StoreFailure,
    Tenant,
    VersionConflict,
)
from metalora.serving.store.opening import open_store

__all__ = [
    "Example",
    "KeyReused",
    "LimitReached",
    "NewTask",
    "Store",
    "StoreFailure",
    "StoredTask",
    "Tenant",
    "VersionConflict",
    "open_store",
]
