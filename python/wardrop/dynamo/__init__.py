"""Everything that knows NVIDIA Dynamo: discovery, frontends, workers' feeds, and a mock fleet.

`import wardrop` imports nothing here. Nothing here runs between the first and the last byte of a
request.
"""
