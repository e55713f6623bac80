"""Judges that score a picture and a prompt in one pass: CLIP, PickScore, HPSv2, ImageReward.

Each loads on stock transformers, needs no extra, and follows its official code, which its
docstring names. Scores keep their official scales. `JUDGES.md` beside this folder has the table.
"""
