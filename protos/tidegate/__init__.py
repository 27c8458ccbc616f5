"""Protocols of Tidegate, by version."""
