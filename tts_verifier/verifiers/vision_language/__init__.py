"""Judges on image-text-to-text models of transformers: what they reply, and how probable it is.

`JUDGES.md` beside this folder says what each of them measures, and where it fails.
"""
