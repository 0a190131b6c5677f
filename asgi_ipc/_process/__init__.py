"""This process: its number, its descriptors, and who else lives."""
