"""The real command, in processes of its own, beside sites that run."""
