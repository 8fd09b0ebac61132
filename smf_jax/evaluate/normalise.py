"""How answers are compared: what of their spelling counts."""

import itertools
import re
import string
import unicodedata

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
ARTICLE_WORDS = frozenset(["a", "an", "the"])
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
MARK = re.compile(r"[^\w\s]|_")
BETWEEN_DIGITS = re.compile(r"(?<=\d)(?:[^\w\s]|_)+(?=\d)")
# Punctuation that tells one answer from another.
KEPT = frozenset("#%&*+-/@\\_\u2030\u2031\u2032\u2033\u2034\u0609\u060a\u066a")
# Dashes and minus are hyphens, and wide and small forms of a sign are the sign.
FORMS = dict.fromkeys([*range(0x2010, 0x2016), 0x2212, 0xFE58], "-") | {
    code: sign
    for code in range(0xFE30, 0xFF61)
    if (sign := unicodedata.normalize("NFKC", chr(code))) in KEPT
}


def normalise(answer: str) -> str:
    """Returns an answer without case, sentence punctuation, articles and extra spaces.

    Symbols, signs, decimal points, and whatever stands between two digits are kept:
    "-5" is not "5", "2.5" not "25", "C++" not "C", and "H+" not "H-". An article is a
    word before another, without a mark between: the A of "vitamin A", "A, B" and
    "A. Milne" is none. An answer that consists of what is left out, such as "A" or "?",
    stays what it is. The form of Unicode is NFC.
    """
    text = unicodedata.normalize("NFC", answer).lower()
    text = unicodedata.normalize("NFC", text).translate(FORMS)
    text = THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    counts = [True] * len(text)
    for mark in MARK.finditer(text):
        counts[mark.start()] = _counts(text, mark.start())
    for between in BETWEEN_DIGITS.finditer(text):
        counts[slice(*between.span())] = itertools.repeat(True, len(between[0]))
    words = []  # with whether each may be an article
    for start, end in (match.span() for match in re.finditer(r"\S+", text)):
        word = "".join(itertools.compress(text[start:end], counts[start:end]))
        if word:
            words.append((word, word in ARTICLE_WORDS and counts[end - 1]))
    kept = [word for word, is_article in words[:-1] if not is_article]
    kept += [word for word, _ in words[-1:]]
    if ARTICLE_WORDS.issuperset(kept):  # as in "The The"
        kept = [word for word, _ in words]
    return " ".join(kept or text.split())


def _counts(text: str, index: int) -> bool:
    """Returns whether a character counts that is not between two digits."""
    character = text[index]
    if character != "`" and not unicodedata.category(character).startswith("P"):
        return True
    before, after = text[max(index - 1, 0) : index], text[index + 1 : index + 2]
    if character == "-":
        joins_letters = before.isalpha() and after.isalpha()
        # A dash or a bullet before a word; before a number it may be a sign.
        is_dash = not (before + after).strip() and text[index + 2 : index + 3].isalpha()
        return not (joins_letters or is_dash)
    if character == ".":
        return before != "." and after.isdecimal()  # "...5" is no ".5"
    return character in KEPT


def squad_normalise(answer: str) -> str:
    """Returns an answer as the evaluation of SQuAD compares it.

    ASCII punctuation goes wherever it stands, articles go as words, and nothing may be
    left: "-5" is "5", and "A" is "".

    Source: Rajpurkar et al. 2016, arXiv:1606.05250.
    """
    text = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", text).split())
