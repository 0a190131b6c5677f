"""Extents of a segment and named records in them."""
