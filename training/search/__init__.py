"""Hyperparameter search with Optuna: the space, the trials, and their tables and picture."""
