"""From files to a series: tables, columns and times, splits, the scaler, named data sets, and features made from others.

Knows no network. What belongs here reads data or describes it; what judges a forecast of it is `training.judging`.
"""
