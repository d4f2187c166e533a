"""Learners that adapt to a new task from a few labelled examples."""
