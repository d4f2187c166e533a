"""Costs, as ratios within one run."""
