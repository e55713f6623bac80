"""How parts send requests over HTTP: addresses and keys, clients with limits, chat."""

from tts_verifier.interfaces.endpoints.address import without_key
from tts_verifier.interfaces.endpoints.chat import ChatEndpoint, check_above_zero
from tts_verifier.interfaces.endpoints.clients import MOST_SECONDS, ClientPool, bounded
from tts_verifier.interfaces.endpoints.reply import ChatReply, reply_of

__all__ = [
    "MOST_SECONDS",
    "ChatEndpoint",
    "ChatReply",
    "ClientPool",
    "bounded",
    "check_above_zero",
    "reply_of",
    "without_key",
]
