"""A load on `metalora serve`: `PYTHONPATH=tools python -m serving_load MODE`, or `make load`."""
