"""What a running gateway offers to people and tools beside its data path: the admin API."""
