"""Which of the words that were read stand for a wanted text, and which of them are wrong."""

import pytest

from tts_verifier.verifiers.rules.matching import best_matches, pieces_of


def parts(wanted: str, read: str) -> list[str]:
    words = read.split()
    match = best_matches([wanted], words)[0]
    return [words[word][first : last + 1] for word, first, last in match.wrong]


@pytest.mark.parametrize(
    ("wanted", "read", "words", "similarity"),
    [
        ("open 24 hours", "fresh OPEN 24 HOURS closed", (1, 2, 3), 1.0),
        ("OPEN 24 HOURS", "OPEN 24 HOVRS", (0, 1, 2), 10 / 11),
        ("New York", "NEWYORK", (0,), 1.0),
        ("welcome", "wel come", (0, 1), 1.0),
        ("don't – walk", "don’t - walk", (0, 1, 2), 1.0),
        ("SALE!", "SALE！", (0,), 1.0),
        ("straße", "STRASSE", (0,), 1.0),
        ("OPEN", "", (), 0.0),
        ("OPEN", "xyz", (), 0.0),
    ],
)
def test_the_most_similar_run_of_words_is_taken(
    wanted: str, read: str, words: tuple[int, ...], similarity: float
) -> None:
    match = best_matches([wanted], read.split())[0]
    assert match.words == words
    assert match.similarity == pytest.approx(similarity)


def test_no_word_serves_two_texts() -> None:
    first, second = best_matches(["OPEN", "OPENS"], ["OPENS"])
    assert (first.words, first.similarity) == ((), 0.0)
    assert (second.words, second.similarity) == ((0,), 1.0)
    # Taken one by one, "OPEN A" would leave nothing good for "A B".
    matches = best_matches(["OPEN A", "A B"], ["OPEN", "A", "B"])
    assert sum(len(match.words) for match in matches) == 3
    assert sum(match.similarity for match in matches) == pytest.approx(0.8 + 1)


@pytest.mark.parametrize(
    ("word", "wanted", "pieces"),
    [
        ("OPEN24", ["open", "24"], ["OPEN", "24"]),
        ("OPXN24", ["open", "24"], ["OPXN", "24"]),
        ("FRESHCOFFEETEA", ["fresh coffee", "tea"], ["FRESHCOFFEE", "TEA"]),
        ("OPENOPEN", ["OPEN", "x"], ["OPEN", "OPEN"]),
        ("OPEN", ["OPEN", "PE"], ["OPEN"]),
        ("open", ["OPEN", "x"], ["open"]),
        ("STRAßE24", ["strasse", "24"], ["STRAßE24"]),
    ],
)
def test_words_that_were_read_as_one_are_split(word, wanted, pieces) -> None:
    assert pieces_of(word, wanted) == pieces


def test_case_counts_where_it_is_asked_for() -> None:
    assert best_matches(["Open"], ["OPEN"])[0].similarity == 1
    assert best_matches(["Open"], ["OPEN"], case_sensitive=True)[0].similarity == 0.25


@pytest.mark.parametrize(
    ("wanted", "read", "wrong"),
    [
        ("FIRE STATION", "FIRE STATIOX", ["STATIOX"]),
        ("FIRE STATION", "FIRESTATIOX", ["STATIOX"]),
        ("FIRE STATION", "FIXESTATION", ["FIXE"]),
        ("fire station", "fire sta tiox", ["sta", "tiox"]),
        ("OPEN 24 HOURS", "OPEN HOURS", ["OPEN", "HOURS"]),
        ("OPEN 24 HOURS", "OPE 24 HOURS", ["OPE"]),
        ("OPEN 24 HOURS", "OPENN 24 HOURS", ["OPENN"]),
        ("OPEN 24 HOURS", "OPEN 7 24 HOURS", ["7"]),
        ("Straße 7", "STRASXE 7", ["STRASXE"]),
        ("OPEN", "open", []),
    ],
)
def test_what_differs_is_named_by_the_words_of_the_wanted_text(
    wanted: str, read: str, wrong: list[str]
) -> None:
    assert parts(wanted, read) == wrong


def test_many_words_are_matched_quickly() -> None:
    words = [f"word{i}" for i in range(400)]
    matches = best_matches(["word7 word8", "word399", "absent"], words)
    assert [match.words for match in matches[:2]] == [(7, 8), (399,)]


def test_a_page_of_text_is_matched_in_seconds() -> None:
    # With a list in place of an array, and all runs of words, it takes minutes.
    page = ("the quick brown fox jumps over the lazy dog " * 8).split()
    match = best_matches([" ".join(page)], [*page, "and", "more"])[0]
    assert (match.similarity, match.words) == (1.0, tuple(range(len(page))))
