"""What faults cost clients: Dynamo's own KV router and Wardrop under the same fault, in one run."""
