"""The wire: `tidegate.v1`, and the code generated from it."""
