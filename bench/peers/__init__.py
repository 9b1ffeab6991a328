"""Several routers in front of one fleet: load spread and TTFT with and without peers."""
