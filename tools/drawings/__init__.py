"""The drawings of the documentation, as SVG with a light and a dark form: `PYTHONPATH=tools python -m drawings`."""
