"""How much a controller can gain on traffic that changes within a run."""
