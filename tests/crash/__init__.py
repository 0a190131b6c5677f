"""Killed at every store: what a SIGKILL leaves behind, looked at word by word."""
