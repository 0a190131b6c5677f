"""Channels 1.1.8 and Daphne 1.4.2, the real packages, running on this layer."""
