"""What an exported graph is worth: it is replayed as it is served, and scored beside baselines on the same timesteps.

Knows no torch: the file is judged, through onnxruntime. How scores are shown is `training.publishing` and `training.cli`.
"""
