"""The miniature world: captioned scenes of coloured shapes, whose truth is known."""
