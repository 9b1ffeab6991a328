"""KV events of engines that publish them themselves: vLLM and SGLang over ZMQ.

feed = EngineFeed(block_size=16)
topic, sequence, payload = socket.recv_multipart()
feed.apply(router, worker, int.from_bytes(sequence, "big"), payload)
"""

from wardrop._core import EngineFeed

__all__ = ["EngineFeed"]
