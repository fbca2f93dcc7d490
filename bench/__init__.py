"""Timing, tables and plots: `python3 bench` runs all of it."""
