"""Numeric scores of answers and of runs."""
