"""Two independent readers of the miniature world's pictures, and what their findings mean.

The oracle labels training data; the judge is held out and decides in reports.
"""

from tts_verifier.shapes.readers.constraints import Reading, Thing, compare

__all__ = ["Reading", "Thing", "compare"]
