import pytest
from hypothesis import given
from hypothesis import strategies as st

from smf_jax.config import ConfigError
from smf_jax.data.chat_template import DATE, ChatTemplate
from smf_jax.data.prompts import (
    PLAIN,
    Example,
    PromptFormat,
    encode_answered,
    encode_asked,
    ends_of,
    turn_end,
)
from smf_jax.data.tokenizer import (
    EOS,
    PAD,
    Tokenizer,
    decode,
    encode_completion,
    encode_prompt,
    train_tokenizer,
)

# After ChatML: <unk> ends a turn here, and <eot> a text.
TEMPLATE = ChatTemplate(
    "{% for message in messages %}{{ bos_token }}{{ message.role }}\n"
    "{{ message.content | trim }}<unk>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}",
    (("bos_token", "<pad>"), ("eos_token", "<eot>")),
)
UNK = 2
CHAT = PromptFormat("chat")
QUESTION = Example("who leads ?", "ada may", "f", is_question=True)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer(["who leads ? ada may"], "bpe", vocab_size=280)
    return tokenizer._replace(template=TEMPLATE)


def whole(tokenizer, text):
    """Returns the ids of a text in which control tokens are control tokens."""
    tokenizer.rules.encode_special_tokens = False
    ids = tokenizer.rules.encode(text).ids
    tokenizer.rules.encode_special_tokens = True
    return ids


def test_a_question_is_asked_as_the_template_writes_it(tokenizer):
    want = "<pad>user\nwho leads ?<unk>\n<pad>assistant\n"

    assert encode_asked(tokenizer, CHAT, "who leads ?") == whole(tokenizer, want)


def test_shots_are_earlier_turns_of_a_chat(tokenizer):
    form = CHAT._replace(shots=(("q", "a"),))
    want = "<pad>user\nq<unk>\n<pad>assistant\na<unk>\n"
    want += "<pad>user\nwho ?<unk>\n<pad>assistant\n"

    assert encode_asked(tokenizer, form, "who ?") == whole(tokenizer, want)


def test_shots_of_a_plain_model_are_questions_with_answers(tokenizer):
    form = PromptFormat("few-shot", (("q", "a"), ("r", "b")))
    want = (
        "Question: q\nAnswer: a\n\nQuestion: r\nAnswer: b\n\nQuestion: who ?\nAnswer:"
    )

    assert encode_asked(tokenizer, form, "who ?") == encode_prompt(tokenizer, want)


@pytest.mark.parametrize("kind", ["plain", "few-shot", "chat"])
def test_a_text_that_the_answer_completes_stands_alone(tokenizer, kind):
    form = PromptFormat(kind, (("q", "a"),))

    got = encode_asked(tokenizer, form, "the lead is", is_question=False)

    assert got == encode_prompt(tokenizer, "the lead is")
    example = Example("the lead is", "ada", "f")
    assert encode_answered(tokenizer, form, example) == (
        got,
        encode_completion(tokenizer, "ada"),
    )


def test_an_answer_ends_as_the_template_ends_a_turn(tokenizer):
    prompt, completion = encode_answered(tokenizer, CHAT, QUESTION)

    assert prompt == encode_asked(tokenizer, CHAT, QUESTION.prompt)
    assert completion == [*encode_prompt(tokenizer, "ada may"), UNK]
    assert turn_end(tokenizer) == UNK
    assert ends_of(tokenizer, CHAT) == (UNK, EOS)
    assert ends_of(tokenizer, PLAIN) == (EOS,)


def test_a_stop_string_may_be_a_control_token(tokenizer):
    form = PromptFormat(stop=("<unk>", "x"))

    assert ends_of(tokenizer, form) == (EOS, UNK)


def test_a_template_without_an_end_of_turn_is_ended_by_eos(tokenizer):
    bare = tokenizer._replace(
        template=ChatTemplate("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    )

    assert turn_end(bare) is None
    assert encode_answered(bare, CHAT, QUESTION)[1][-1] == EOS


parts = st.sampled_from(["<unk>", "<pad>", "<eot>", "é", "x ", "\n", "東", "<", "t>"])
texts = st.lists(parts, max_size=5).map(lambda some: "".join(some).strip())


@given(question=texts, answer=texts)
def test_control_tokens_in_a_conversation_are_the_templates_alone(
    tokenizer, question, answer
):
    example = QUESTION._replace(prompt=question, completion=answer)
    prompt, completion = encode_answered(tokenizer, CHAT, example)

    assert [token for token in prompt if token in (PAD, EOS, UNK)] == [PAD, UNK, PAD]
    assert [token for token in completion if token in (PAD, EOS, UNK)] == [UNK]
    assert decode(tokenizer, completion, (UNK,)) == answer
    asked = tokenizer.rules.decode(prompt)
    assert asked == f"user\n{question}\nassistant\n"


def test_the_end_of_a_turn_is_found_whatever_the_model_is_prompted_by(tokenizer):
    thinking = "{% if add_generation_prompt %}Please say why, in your words:{% endif %}"
    template = TEMPLATE._replace(source=TEMPLATE.source + thinking)

    assert turn_end(tokenizer._replace(template=template)) == UNK


def test_of_two_control_tokens_the_longer_one_is_meant():
    rules = train_tokenizer(["x"], "bpe", vocab_size=270).rules
    rules.add_special_tokens(["<eot>2"])
    template = ChatTemplate("{{ messages[-1].content }}<eot>2{{ messages[0].content }}")
    tokenizer = Tokenizer(rules, template=template)
    end = rules.token_to_id("<eot>2")

    assert turn_end(tokenizer) == end
    for question in ("x", "<pad>"):
        assert encode_asked(tokenizer, CHAT, question).count(end) == 1


def test_a_template_that_rewrites_the_question_cannot_teach(tokenizer):
    rewriting = tokenizer._replace(
        template=ChatTemplate(
            "{{ messages | length }}{{ messages[0].content }}{{ messages[-1].content }}"
        )
    )

    with pytest.raises(ConfigError, match="does not continue a question"):
        encode_answered(rewriting, CHAT, QUESTION)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('no system turn') }}", "no system turn"),
        ("{% for %}", "chat template cannot be used"),
        ("{{ messages[99].content.x }}", "chat template cannot be used"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),  # the sandbox
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ raise_exception('one\ntwo') }}", "one two"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ range(1000000000) | list }}", "Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ],
)
def test_a_template_that_fails_is_refused_in_one_line(source, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        ChatTemplate(source).render([], "q")
    assert "\n" not in str(caught.value)


def test_a_template_that_prints_the_date_prints_the_same_one_always():
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}")

    assert template.render([], "q") == DATE


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("{{ [1, 'é'] | tojson }}", '[1, "é"]'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", '{"a": 2, "b": 1}'),
        ("{{ ['é'] | tojson(ensure_ascii=true, separators=',:') }}", '["\\u00e9"]'),
        ("x\n{%- generation -%}\n y {% endgeneration %}\n z", "xy  z"),
        ("{% generation %}{% set x = 1 %}{% endgeneration %}{{ x }}", ""),
    ],
)
def test_templates_may_use_what_transformers_offers(source, want):
    assert ChatTemplate(source).render([], "q") == want


def test_a_model_without_a_template_is_not_asked_by_one(tokenizer):
    with pytest.raises(ConfigError, match="no chat template"):
        encode_asked(tokenizer._replace(template=None), CHAT, "who ?")
