"""The formulas of `tts-train flow`: steps that draw, advantages, losses. They keep no state."""
