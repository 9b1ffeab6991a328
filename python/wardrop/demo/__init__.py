"""`wardrop demo`: the same traffic through Dynamo's round robin, Dynamo's KV router and Wardrop."""
