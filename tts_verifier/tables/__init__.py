"""Reads rows from .txt, .csv, .tsv, .json, .jsonl, .ndjson and Parquet files, and from Python.

Every row keeps its place (file and line) for messages. Values stay as the file has them; `columns`
finds the columns that hold what is asked for, by the names that published prompt sets use.
"""

from tts_verifier.tables.columns import (
    CATEGORY_ROLE,
    IMAGE_ROLE,
    PROMPT_ROLE,
    Role,
    RoleColumns,
    as_cell,
)
from tts_verifier.tables.read import TABLE_SUFFIXES, is_plain, read_table
from tts_verifier.tables.rows import Row, rows_of

__all__ = [
    "CATEGORY_ROLE",
    "IMAGE_ROLE",
    "PROMPT_ROLE",
    "TABLE_SUFFIXES",
    "Role",
    "RoleColumns",
    "Row",
    "as_cell",
    "is_plain",
    "read_table",
    "rows_of",
]
