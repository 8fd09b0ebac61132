import pytest

from smf_jax.data.scripts import has_space_after, is_spaceless, is_word


@pytest.mark.parametrize("character", "日のカーท。ｱ")
def test_some_scripts_are_written_without_spaces(character):
    assert is_spaceless(character)
    assert not has_space_after(f"ab {character}")


@pytest.mark.parametrize("character", "aé1?א한🦊 \x00")
def test_others_are_not(character):
    assert not is_spaceless(character)
    assert has_space_after(f"東 {character}")


@pytest.mark.parametrize(
    ("text", "part", "want"),
    [
        ("an ada,", "ada", True),
        ("armada", "ada", False),
        ("adamant", "ada", False),
        ("ada_may", "ada", False),
        ("ada-may", "ada", True),
        ("首都は東京です", "東京", True),
        ("NHK東京", "NHK", True),  # where the script changes, a word ends
        ("e\u0301t", "t", False),
        ("t\u0301", "t", False),
        ("1.5", "5", False),
        ("1,5", "1", False),
        ("5.", "5", True),
        ("a.5", "5", True),
        ("5, 6", "5", True),
        ("ada", "ada", True),
    ],
)
def test_a_part_of_a_text_is_a_word_if_no_word_goes_on_at_its_ends(text, part, want):
    start = text.index(part)

    assert is_word(text, start, start + len(part)) == want
