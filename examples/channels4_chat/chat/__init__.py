"""A chat over several server processes that share nothing but a channel layer."""
