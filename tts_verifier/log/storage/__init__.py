"""The bytes of a run folder: files that appear whole, values as bytes, Parquet tables."""
