"""Who runs a coroutine where no event loop does."""
