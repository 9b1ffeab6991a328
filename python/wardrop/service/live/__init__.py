"""The live page on the admin port: one document, fed by server-sent events once a second.

    gateway.observation() ─▶ Builder: snapshot, history ─▶ LiveFeed: one message ─▶ viewers

The feed builds one snapshot per second, with and without viewers, so that the charts of a page that
opens late show the last minutes. Cost: O(workers) per second, and one write per viewer.
"""

from wardrop.service.live.document import CONTENT_SECURITY_POLICY, document
from wardrop.service.live.feed import LiveFeed, TooManyViewersError

__all__ = ["CONTENT_SECURITY_POLICY", "LiveFeed", "TooManyViewersError", "document"]
