"""Benchmarks: ratios of one thing to another, measured side by side in one run."""
