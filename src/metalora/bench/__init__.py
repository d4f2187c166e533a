"""Measurements of cost: time and memory, as ratios within one run, and the table of result rows."""
