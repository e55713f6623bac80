"""What a log tells without loading a model: replay, report, contact sheet."""
