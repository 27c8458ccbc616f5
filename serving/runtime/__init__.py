"""The running server: batching, checkpoints, metrics, start and stop."""
