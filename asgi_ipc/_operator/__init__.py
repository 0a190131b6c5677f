"""A site read from outside, without disturbing it."""
