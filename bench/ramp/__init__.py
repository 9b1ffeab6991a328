"""A real Dynamo under rising and falling load: Wardrop, Dynamo by default, Dynamo tuned."""
