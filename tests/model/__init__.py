"""The layer beside a model of it, under random events, compared after each."""
