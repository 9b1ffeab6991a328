"""KV events of engines that publish them, and of Dynamo's event plane.

vLLM and SGLang publish over ZMQ, with one feed per worker. Their frames carry token ids, so they
serve routers with either kind of local hash:

    feed = EngineFeed(block_size=16)
    topic, sequence, payload = socket.recv_multipart()
    feed.apply(router, worker, int.from_bytes(sequence, "big"), payload)

Dynamo's event plane carries hashes without tokens. Each message names its worker:

    apply_dynamo_message(router, socket.recv_multipart())

Rust decodes all of it, with limits. A frame above 8 MiB, a malformed frame, or a frame that
announces more than it contains is a ValueError and changes nothing.
"""

from wardrop._core import EngineFeed, apply_dynamo_message, decode_engine_batch

__all__ = ["EngineFeed", "apply_dynamo_message", "decode_engine_batch"]
