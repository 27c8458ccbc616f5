"""Acts: batches, keeps, measures, starts and stops."""
