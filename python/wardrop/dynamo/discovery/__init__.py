"""Discovery: which models, workers and event feeds a Dynamo deployment has now.

Four backends read it: Dynamo's file store, etcd, Kubernetes, and the frontends themselves. Each
yields a `FleetView`, a plain value; `changes` turns two views into an ordered list of changes, and
`wardrop.dynamo.gateway_sync` applies the changes to the gateway. Dynamo's own format ends in
`store_reader`.
"""
