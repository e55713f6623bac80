"""Turns the folder of a training run into one HTML page that needs neither model nor other files.

stored     what the folder holds: settings, metrics and examples
curves     a chart for each metric
page       the whole page, from the templates
"""

from tts_verifier.analysis.report.training_run.page import write_training_report
from tts_verifier.analysis.report.training_run.stored import is_training_run

__all__ = ["is_training_run", "write_training_report"]
