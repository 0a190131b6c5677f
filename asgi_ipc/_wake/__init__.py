"""Who sleeps, who rings, who lives."""
