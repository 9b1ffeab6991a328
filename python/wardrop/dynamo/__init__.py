"""Everything that knows NVIDIA Dynamo: discovery, frontends, feeds, and the mock fleet.

Nothing here is imported by `import wardrop`; nothing here runs between a request's first byte and
its last.
"""
