"""Runs and what is made of several: settings, single runs, comparisons."""
