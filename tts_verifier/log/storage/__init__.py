"""The bytes of a run folder: files that appear whole, codecs of values, Parquet tables."""
