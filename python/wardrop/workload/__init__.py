"""Requests to drive a fleet with: generated conversations, or the rows of a recorded trace.

Pure: the same seed and specification give the same requests. The demo and the benches of the
gateway send them over HTTP.
"""

from wardrop.workload.bodies import chat_body, completion_body
from wardrop.workload.conversations import ConversationSpec, generate
from wardrop.workload.recorded import turns_of_trace
from wardrop.workload.turn import Turn, reusable_share, summary

__all__ = [
    "ConversationSpec",
    "Turn",
    "chat_body",
    "completion_body",
    "generate",
    "reusable_share",
    "summary",
    "turns_of_trace",
]
