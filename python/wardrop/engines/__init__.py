"""KV events of engines that publish them themselves, and of Dynamo's event plane.

vLLM and SGLang over ZMQ, one feed for each worker; their frames carry token ids, so they suit
routers of either hash:

feed = EngineFeed(block_size=16)
topic, sequence, payload = socket.recv_multipart()
feed.apply(router, worker, int.from_bytes(sequence, "big"), payload)

Dynamo's plane carries hashes and no tokens, and says itself which worker an event is of:

apply_dynamo_message(router, socket.recv_multipart())

All of it is decoded in Rust, with limits: a frame above 8 MiB, a malformed one or one that
announces more than it has is a ValueError and changes nothing.
"""

from wardrop._core import EngineFeed, apply_dynamo_message, decode_engine_batch

__all__ = ["EngineFeed", "apply_dynamo_message", "decode_engine_batch"]
