"""How answers are compared: what of their spelling counts."""

import re
import string
import unicodedata

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# An article stands before a word: the A of "vitamin A" is none.
LEADING_ARTICLES = re.compile(r"(?:(?<=\s)|^)(?:a|an|the)\s+(?=\S)")
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
DASHES = dict.fromkeys(range(0x2010, 0x2016), "-") | {0x2212: "-"}  # and minus
KEPT = frozenset("#%&*+-/@\\_")  # punctuation that tells one answer from another


def normalise(answer: str) -> str:
    """Returns an answer without case, sentence punctuation, articles and extra spaces.

    Symbols, signs, decimal points, and whatever stands between two digits are kept:
    "-5" is not "5", "2.5" not "25", "C++" not "C", and "H+" not "H-". An answer that
    consists of what is left out, such as "A" or "?", stays what it is. The form of
    Unicode is NFC.
    """
    text = unicodedata.normalize("NFC", answer).lower()
    text = unicodedata.normalize("NFC", text).translate(DASHES)
    text = THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    kept = "".join(text[i] for i in range(len(text)) if _counts(text, i))
    words = LEADING_ARTICLES.sub("", " ".join(kept.split()))
    return words or " ".join(text.split())


def _counts(text: str, index: int) -> bool:
    """Returns whether a character tells one answer from another."""
    character = text[index]
    if character != "`" and not unicodedata.category(character).startswith("P"):
        return True
    before, after = text[index - 1 : index], text[index + 1 : index + 2]
    if character == "-":
        joins_letters = before.isalpha() and after.isalpha()
        # A dash or a bullet before a word; before a number it may be a sign.
        is_dash = not (before + after).strip() and text[index + 2 :][:1].isalpha()
        return not (joins_letters or is_dash)
    if character == "." and after.isdigit():
        return True
    return character in KEPT or (before.isdigit() and after.isdigit())


def squad_normalise(answer: str) -> str:
    """Returns an answer as the evaluation of SQuAD compares it.

    ASCII punctuation goes wherever it stands, articles go as words, and nothing may be
    left: "-5" is "5", and "A" is "".

    Source: Rajpurkar et al. 2016, arXiv:1606.05250.
    """
    text = unicodedata.normalize("NFC", answer).lower()
    text = "".join(c for c in text if c not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", text).split())
