"""Measurements; run from the root of the repository with the package installed."""
