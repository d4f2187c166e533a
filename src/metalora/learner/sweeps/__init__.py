"""Searches over method, rank, learning rate and targets for a fine-tuning or a learner, with Optuna."""
