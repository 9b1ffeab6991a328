"""`wardrop frontend`: Dynamo's frontend with the routing decision in process.

`arguments` reads the flags of `dynamo.frontend` with Dynamo's own parser, and Wardrop's flags
beside them. `launch` replaces the interpreter by the native frontend. No Python runs after that.
"""
