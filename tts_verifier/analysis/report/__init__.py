"""Turns run folders into one HTML page: every prompt, every candidate, and what the run achieved.

sources    addresses of images, heatmaps and masks: links to the run's files, or data in the page
cards      one trial, and one prompt, as the page shows it
figures    charts and tables about one run, and between runs
strip      the first pictures: what changed most
side_by_side  what several runs chose for the same prompts
page       the whole page, from the templates
rendering  the templates, with what they use

`training_run` does the same for the folder of a training run.
"""

from tts_verifier.analysis.report.page import write_report

__all__ = ["write_report"]
