"""Bytes that processes share: one holder of the lock at a time, all of a change or nothing."""
