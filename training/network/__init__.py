"""The network in PyTorch: guard, scaler, cells, heads and monitors, as a sequence to train and as a step to export.

This room knows no optimizer, no file and no series beyond its scaler. How a network is trained is `tidegate.training.learning`.
"""
