"""CPU and latency that the endpoint picker adds to Envoy."""
