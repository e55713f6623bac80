"""Run folders -> one HTML page: every prompt, every candidate, and what the run was worth.

pictures   where a picture is found: a link to the run's own file, or bytes in the page
cards      one trial as the page shows it
figures    charts and tables over a run, and between runs
page       the whole, through the templates
"""

from tts_verifier.analysis.report.page import write_report

__all__ = ["write_report"]
