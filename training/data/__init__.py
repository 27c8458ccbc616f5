"""From files to a series: tables, columns and times, splits, the scaler, named data sets, and derived features.

This room knows no network. Code that reads or describes data belongs here; scores of forecasts are in `tidegate.training.judging`.
"""
