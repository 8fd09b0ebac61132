import pytest

from smf_jax.config import BY_DEFAULT, AskConfig, ConfigError
from smf_jax.data.records import Fact
from smf_jax.data.tokenizer import train_tokenizer
from smf_jax.evaluate.asking import make_asking, prompt_kind
from tests.data.test_prompts import TEMPLATE, UNK

FACTS = [Fact("1", "who ?", ("ada", "may")), Fact("2", "when ?", ("now",))]


@pytest.fixture(scope="module")
def plain():
    return train_tokenizer(["who ? ada"], "bpe", vocab_size=270)


@pytest.fixture(scope="module")
def templated(plain):
    return plain._replace(template=TEMPLATE)


def test_a_model_chats_if_its_answers_end_as_its_template_ends_a_turn(plain, templated):
    assert prompt_kind("auto", plain) == "plain"
    assert prompt_kind("auto", templated) == "plain"  # a base model with a template
    assert prompt_kind("auto", templated._replace(eos=UNK)) == "chat"
    assert prompt_kind("auto", templated._replace(other_ends=(UNK,))) == "chat"
    assert prompt_kind("few-shot", templated._replace(eos=UNK)) == "few-shot"


def test_an_answer_ends_with_its_line_unless_in_a_chat_or_if_right_ones_do_not(
    plain, templated
):
    chat = AskConfig(prompt="chat")

    assert make_asking(BY_DEFAULT, plain).form.stop == ("\n",)
    assert make_asking(chat, templated).form.stop == ()
    assert make_asking(BY_DEFAULT, plain, answers=["a\nb"]).form.stop == ()
    own = AskConfig(stop=(";", "."))
    assert make_asking(own, plain, answers=["a\nb"]).form.stop == (";", ".")


def test_shots_are_questions_with_their_first_answers(plain):
    form = make_asking(AskConfig(prompt="few-shot"), plain, FACTS).form

    assert form.kind == "few-shot"
    assert form.shots == (("who ?", "ada"), ("when ?", "now"))


def test_a_plain_prompt_has_no_shots(plain):
    with pytest.raises(ConfigError, match="no shots=2 before it"):
        make_asking(AskConfig(shots=2), plain)


def test_few_shots_are_five_by_default_and_others_none():
    assert AskConfig(prompt="few-shot").num_shots == 5
    assert AskConfig(prompt="few-shot", shots=2).num_shots == 2
    assert AskConfig(prompt="chat").num_shots == BY_DEFAULT.num_shots == 0
    assert AskConfig(prompt="chat", shots=3).num_shots == 3


def test_a_model_without_a_template_is_not_asked_by_it(plain):
    with pytest.raises(ConfigError, match="no chat template: ask it with --prompt"):
        make_asking(AskConfig(prompt="chat"), plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"shots": -1},
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**32},
        {"stop": ("a", "")},
    ],
)
def test_settings_without_a_meaning_are_refused_by_name(settings):
    (name,) = settings
    with pytest.raises(ConfigError, match=name.replace("_", ".")):
        AskConfig(**settings)
