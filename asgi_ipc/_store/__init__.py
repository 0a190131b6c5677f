"""Messages and memberships: one method, one hold of the lock."""
