"""A verifier that runs in a `tts-serve`, on this machine or another one."""

from tts_verifier.verifiers.remote.remote import Remote

__all__ = ["Remote"]
