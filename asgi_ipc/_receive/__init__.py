"""From the ring to the message."""
