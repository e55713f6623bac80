"""Continuous batching: schedule, prefill, decode, finish."""
