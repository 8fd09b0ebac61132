"""Exact match and F1 of answers by regular expressions, as SQuAD's and our own."""

import re
import sys
import unicodedata
from collections import Counter

CHARACTERS = [*map(chr, range(sys.maxunicode + 1))]
MARKS = [c for c in CHARACTERS if unicodedata.category(c)[0] == "P"]
MARK = f"[{re.escape(''.join(MARKS))}`]"
NUMBERS = [c for c in CHARACTERS if c.isalnum() and not c.isalpha()]
LETTER = rf"[^\W_{''.join(NUMBERS)}]"
SIGNS = "#%&*+-/@\\_"
KEPT = [
    f"[{re.escape(SIGNS)}\u2030-\u2034\u0609\u060a\u066a]",  # per mille, primes
    r"(?<=\d)(?:[^\w\s]|_)+(?=\d)",
    r"(?<!\.)\.(?=\d)",  # a decimal point
]
DROPPED = [rf"(?<={LETTER})-(?={LETTER})", rf"(?<!\S)-(?=\s{LETTER})"]
ARTICLE = "a|an|the"


def squad_words(text):
    """Returns what the evaluation of SQuAD compares."""
    text = re.sub(r"[!-/:-@\[-`{-~]", "", text.lower())  # the punctuation of ASCII
    return re.sub(rf"\b({ARTICLE})\b", " ", text).split()


def our_words(text):
    """Returns the words of a text without sentence punctuation and articles."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    text = re.sub("[\u2010-\u2015\u2212\ufe58]", "-", text)
    text = re.sub("[\ufe30-\uff60]", _sign, text)
    thousands = r"(?<![\d.,])\d{1,3}(,\d{3})+(?![\d,])"
    text = re.sub(thousands, lambda number: number[0].replace(",", ""), text)
    kept = {i for pattern in KEPT for i in _places(pattern, text)}
    kept -= {i for pattern in DROPPED for i in _places(pattern, text)}
    dropped = {i for i in _places(MARK, text) if i not in kept}
    words = []
    for match in re.finditer(r"\S+", text):
        places = [i for i in range(*match.span()) if i not in dropped]
        if places:
            before_mark = places[-1] != match.end() - 1
            words.append(("".join(text[i] for i in places), before_mark))
    left = [
        word
        for n, (word, before_mark) in enumerate(words)
        if n == len(words) - 1 or before_mark or not re.fullmatch(ARTICLE, word)
    ]
    if all(re.fullmatch(ARTICLE, word) for word in left):
        left = [word for word, _ in words]
    return left or text.split()


def _sign(match):
    plain = unicodedata.normalize("NFKC", match[0])
    return plain if plain in [*SIGNS] else match[0]


def _places(pattern, text):
    return [i for match in re.finditer(pattern, text) for i in range(*match.span())]


def exact(words, answer, accepted):
    """Returns 1 if an answer has the words of an accepted one, or else 0."""
    return max(int(words(answer) == words(right)) for right in accepted)


def f1(words, answer, accepted):
    """Returns the largest F1 of the words of an answer and of an accepted one."""
    scores = []
    for right in accepted:
        got, want = Counter(words(answer)), Counter(words(right))
        shared = (got & want).total()
        if shared == 0:
            scores.append(float(got == want))  # 1 if both have no words
            continue
        precision, recall = shared / got.total(), shared / want.total()
        scores.append(2 * precision * recall / (precision + recall))
    return max(scores)
