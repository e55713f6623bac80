"""Two independent readers of the miniature world's images, and the meaning of what they find.

The oracle labels training data; the judge is held out, and reports rely on it.
"""

from tts_verifier.shapes.readers.constraints import Reading, Thing, compare

__all__ = ["Reading", "Thing", "compare"]
