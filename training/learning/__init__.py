"""From a series and an architecture to weights: batches, loss, optimizer, schedule, checkpoints, and the run folder.

Calibration is here too: it fits the buffers of the monitors to data. What the result is worth is `training.judging`.
"""
