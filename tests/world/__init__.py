"""A random site of real processes, and calls that fail: everything is accounted for."""
