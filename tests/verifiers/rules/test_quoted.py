"""Which texts a prompt puts in quotes."""

import pytest

from tts_verifier.verifiers.rules.quoted import quoted_texts


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign that says "OPEN 24 HOURS"', ["OPEN 24 HOURS"]),
        ("a cup with “Fresh coffee” and ‘don’t walk’ on it", ["Fresh coffee", "don’t walk"]),
        ("a mug with 'Dad's mug' on it, and 'two'.", ["Dad's mug", "two"]),
        ("„Guten Tag“ «Bonjour» 「你好」", ["Guten Tag", "Bonjour", "你好"]),
        ('写着"开放"的牌子', ["开放"]),
        (r"a sign that says \"CLOSED\"", ["CLOSED"]),
        (r'it reads "he said \"hi\" twice"', ['he said "hi" twice']),
        ('a ""SALE"" banner', ["SALE"]),
        ('signs that say "OPEN," and "OPEN"', ["OPEN"]),
        ('a poster with "line one\nline two"', ["line one line two"]),
        (r'a poster with "line one\nline two"', ["line one line two"]),
        ("a cat in the '90s, rock 'n' roll, the dogs' bowl", []),
        ('a 12" pizza beside a 9" cake', []),
        ('an empty \'\' and "" and "..."', []),
        ('an open " quote', []),
        ("", []),
    ],
)
def test_texts_in_quotes_are_found(prompt: str, texts: list[str]) -> None:
    assert quoted_texts(prompt) == texts


@pytest.mark.parametrize(
    "quoted", ["”ÖPPET”", "»ÖPPET«", "‹ÖPPET›", "‚ÖPPET‘", "『ÖPPET』", "« ÖPPET »", "‚ÖPPET’"]
)
def test_quotes_of_other_languages_are_quotes(quoted: str) -> None:
    assert quoted_texts(f"a 12” sign that says {quoted}, 5” wide") == ["ÖPPET"]
