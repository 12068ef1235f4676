"""Limits of a baseline population, and the verdict over a new run."""
