"""The service: one frozen network, the tasks of thousands of tenants, over HTTP."""
