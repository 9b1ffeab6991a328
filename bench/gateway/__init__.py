"""What the gateway costs before Dynamo, beside Dynamo's own routers: `python -m bench.gateway`."""
