"""Stands before the real one on the path where a process is to do without it."""

raise ImportError("hidden by a test")
