"""Scores of an exported graph: it is replayed as it is served, and scored beside baselines on the same timesteps.

This room knows no torch: it scores the file, through onnxruntime. How scores are shown is `tidegate.training.publishing` and `tidegate.training.cli`.
"""
