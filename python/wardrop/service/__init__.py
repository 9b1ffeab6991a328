"""Around the gateway of one process: the admin API, and files that keep state over restarts."""
