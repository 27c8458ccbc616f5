"""From a series and an architecture to weights: batches, loss, optimizer, schedule, checkpoints, and the run folder.

Calibration belongs here too: it fits the buffers of the monitors to data. Scores of the result are in `tidegate.training.judging`.
"""
