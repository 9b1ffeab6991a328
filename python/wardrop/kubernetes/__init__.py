"""Objects of a Kubernetes API server, followed by list and watch.

    API server ─▶ access ─▶ reflector (one per kind) ─▶ workers of Dynamo (dynamo.discovery)
                                                     └▶ endpoints of a pool (serve, picker)

`access` has the address and the credentials, `reflector` the protocol of list and watch, `objects`
the fields that the router reads. `selector` says which pods serve, and `endpoints` follows their
addresses. Needs the extra `kubernetes`; `selector` and `environment` alone need nothing.
"""
