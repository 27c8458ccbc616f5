"""Tests of what `deploy/` has: rules, dashboard and configuration, on the real programs."""
