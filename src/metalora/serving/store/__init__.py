"""Where the service keeps tenants, tasks and examples: one interface, SQLite or Postgres."""

from metalora.serving.store.base import Example, NewTask, Store, StoredTask, Tenant

__all__ = ["Example", "NewTask", "Store", "StoredTask", "Tenant"]
