"""Scripts that are written without spaces between words."""

import unicodedata

# The first words of the names of their characters, punctuation included.
SPACELESS = frozenset(
    "CJK IDEOGRAPHIC HIRAGANA KATAKANA KATAKANA-HIRAGANA FULLWIDTH HALFWIDTH BOPOMOFO "
    "THAI LAO KHMER MYANMAR TIBETAN".split()
)


def is_spaceless(character: str) -> bool:
    """Returns whether a character belongs to a script without spaces."""
    return unicodedata.name(character, "").partition(" ")[0] in SPACELESS


def has_space_after(prompt: str) -> bool:
    """Returns whether a space comes between a prompt and what follows it."""
    return not is_spaceless(prompt[-1:] or " ")


def is_word(text: str, start: int, end: int) -> bool:
    """Returns whether `text[start:end]` neither starts nor ends within a word."""
    return not (_is_inside(text, start) or _is_inside(text, end))


def _is_inside(text: str, index: int) -> bool:
    """Returns whether the characters on both sides of an index are of one word."""
    before, after = text[max(index - 1, 0) : index], text[index : index + 1]
    if not before or not after:
        return False
    if _is_letter(before) and _is_letter(after):
        return True
    # A number holds a point or a comma: the 5 of 1.5 is no word.
    if before in ".,":
        return after.isdigit() and text[max(index - 2, 0) : index - 1].isdigit()
    return after in ".," and before.isdigit() and text[index + 1 : index + 2].isdigit()


def _is_letter(character: str) -> bool:
    is_part = character.isalnum() or unicodedata.category(character).startswith("M")
    return (is_part or character == "_") and not is_spaceless(character)
