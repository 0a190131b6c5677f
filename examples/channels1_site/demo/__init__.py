"""A small Channels 1 site: one Django project without apps of its own."""
