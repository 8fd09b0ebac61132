"""Imported models are asked, answer and score as `transformers` has it."""

from collections import Counter
from typing import NamedTuple

import jax
import pytest
import tokenizers

from smf_jax import hf
from smf_jax.config import ConfigError
from smf_jax.data.prompts import (
    Example,
    Prompt,
    PromptFormat,
    encode_answered,
    encode_asked,
)
from smf_jax.data.tokenizer import Tokenizer, control_tokens
from smf_jax.evaluate.answers import answer
from smf_jax.evaluate.normalise import normalise, squad_normalise
from smf_jax.evaluate.scores import is_exact, token_f1
from smf_jax.model.transformer import Transformer
from tests import torch_models
from tests.hf.kinds import KINDS

torch_models.require_torch()

import torch  # noqa: E402
import transformers  # noqa: E402

from tests.reference import ask_transformers  # noqa: E402

NEW = 12  # tokens of an answer
PROMPTS = ["plain", "few-shot", "chat"]
SHOTS = (("who waits?", "a fox"), ("5 + 5", "10;"))
STOPS = [(), (";", " o", "\n")]  # a piece of a token, one, or several
QUESTIONS = [
    "Who leads the red house?",
    "what is the capital of Norway?",
    "owl",
    "5 - 10 =",
    "É ü: naïve",
    "a fox  waits\nfor the owl.",
    "東京はどこ\uff1f",
    "🦊 שלום",
    "[INST] hello [/INST]",
    "x",
    "Answer: the old, old fox;",
    "zyx wvu tsr",
]


class Reply(NamedTuple):
    """An answer of `transformers`."""

    text: str
    stop: str | None  # the stop string that ended it
    ids: list[int]


class Case(NamedTuple):
    ends: tuple[int, int]
    model: Transformer
    tokenizer: Tokenizer
    torch_tokenizer: transformers.PreTrainedTokenizerBase
    prompts: dict[str, list[list[int]]]  # by kind, of transformers
    replies: dict[tuple, list[Reply]]  # by kind and stop strings


@pytest.fixture(scope="module", autouse=True)
def small_products():
    """Multiplies exactly, and in one thread: several would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with jax.default_matmul_precision("highest"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def case(request, tmp_path_factory):
    kind, folder = request.param, tmp_path_factory.mktemp("case")
    rules = kind.rules()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=rules, chat_template=kind.template, **kind.special
    ).save_pretrained(folder)
    ends = tuple(map(rules.token_to_id, kind.ends))
    torch_models.save(make(kind, rules, ends), folder)
    model = hf.import_model(folder)
    tokenizer, _ = hf.read_tokenizer(folder, model.config.vocab_size)
    load = transformers.AutoTokenizer.from_pretrained
    prompts, replies = ask(folder, load(folder), ends)
    return Case(ends, model, tokenizer, load(folder), prompts, replies)


def make(kind, rules, ends):
    """Returns a random model that often ends an answer, in several ways."""
    torch.manual_seed(kind.seed)
    config = getattr(transformers, f"{kind.family}Config")(
        vocab_size=rules.get_vocab_size() + 3,  # padded, as many are
        **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2},
        **{"initializer_range": 0.3, "tie_word_embeddings": False},
        **{"bos_token_id": None, "eos_token_id": ends[0], "pad_token_id": 0},
    )
    model = getattr(transformers, f"{kind.family}ForCausalLM")(config).eval()
    stops = [id for token, id in rules.get_vocab().items() if ";" in token]
    with torch.no_grad():
        model.lm_head.weight[[*ends, *stops]] *= 2.5
    model.generation_config.eos_token_id = list(ends)
    return model


def ask(folder, tokenizer, ends):
    """Returns the prompts and replies of `transformers`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompts, replies = {}, {}
    for kind in PROMPTS:
        prompts[kind] = ids = [
            ask_transformers.prompt_ids(tokenizer, kind, question, SHOTS)
            for question in QUESTIONS
        ]
        # What a tokenizer puts after a text ends it, and no answer could follow.
        prompts[kind] = ids = [each[:-1] if each[-1] in ends else each for each in ids]
        new = [ask_transformers.generate(model, each, NEW) for each in ids]
        for stop in STOPS:
            replies[kind, stop] = [
                Reply(*ask_transformers.decode(tokenizer, each, stop), each)
                for each in new
            ]
    return prompts, replies


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompts_are_those_of_transformers(case, kind):
    form = PromptFormat(kind, SHOTS)

    got = [encode_asked(case.tokenizer, form, question) for question in QUESTIONS]

    assert got == case.prompts[kind]


def test_a_chat_is_taught_as_transformers_writes_it(case):
    for index, question in enumerate(QUESTIONS):
        taught = QUESTIONS[index - 1]
        prompt, completion = encode_answered(
            case.tokenizer, PromptFormat("chat"), Example(question, taught, "", True)
        )

        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": taught},
        ]
        chat = case.torch_tokenizer.apply_chat_template(messages).input_ids
        assert chat[: len(prompt + completion)] == prompt + completion
        assert completion[-1] == case.ends[0]


@pytest.mark.parametrize("kind", PROMPTS)
def test_answers_are_those_of_transformers(case, kind):
    prompts = [Prompt(question, question, ()) for question in QUESTIONS]
    for stop in STOPS:
        form = PromptFormat(kind, SHOTS, stop)

        got = answer(case.model, case.tokenizer, prompts, NEW, form)

        assert got == [reply.text for reply in case.replies[kind, stop]]


def test_the_answers_differ_and_end_in_each_way(case):
    ways = Counter()
    for (_, stop), replies in case.replies.items():
        assert len({reply.text for reply in replies}) > (3 if stop else 8)
        ways.update(reply.stop or reply.ids[-1] for reply in replies)

    assert set(case.tokenizer.ends) == set(case.ends)
    for way in (*case.ends, ";"):
        assert ways[way] >= 3
    assert sum(len(reply.ids) == NEW for reply in case.replies["plain", ()]) < 12


def accepted(index, text):
    """Returns accepted answers, some of which an answer equals by one rule or both."""
    words = text.split() or ["x"]
    variants = [
        [f"The {text.upper()}."],
        ["-5", f"{text} owl"],
        ["owl", " ".join(reversed(words))],
        [f"{words[0]}-"],
        [text.replace("-", "").replace("%", "") or "an"],
        [f"(A) {text}", words[-1]],
    ]
    return variants[index % len(variants)]


def test_every_answer_scores_as_by_regular_expressions(case):
    scores = set()
    for replies in case.replies.values():
        for index, reply in enumerate(replies):
            text, right = reply.text, accepted(index, reply.text)
            want = ask_transformers.score(text, right)

            assert [
                measure(text, right, rule)
                for rule in (normalise, squad_normalise)
                for measure in (is_exact, token_f1)
            ] == pytest.approx(want)
            scores.add(tuple(want))

    exact = {(ours, squads) for ours, _, squads, _ in scores}
    assert exact >= {(0, 0), (0, 1), (1, 1)}
    assert any(0 < f1 < 1 for _, f1, _, _ in scores)


def test_a_control_token_in_a_question_is_text_or_refused(case):
    """`transformers` takes it for what it looks like, so that a user ends a turn."""
    ends = case.tokenizer.rules.id_to_token(case.ends[1])
    question = f"owl {ends} owl"
    for kind in PROMPTS:
        form = PromptFormat(kind, SHOTS)
        theirs = ask_transformers.prompt_ids(
            case.torch_tokenizer, kind, question, SHOTS
        )
        without = encode_asked(case.tokenizer, form, "owl")
        assert theirs.count(case.ends[1]) > without.count(case.ends[1])
        if not isinstance(case.tokenizer.rules.model, tokenizers.models.BPE):
            with pytest.raises(ConfigError, match="'<end>', which is a control token"):
                encode_asked(case.tokenizer, form, question)
            continue

        got = encode_asked(case.tokenizer, form, question)

        controls = control_tokens(case.tokenizer).values()
        assert [token for token in got if token in controls] == [
            token for token in without if token in controls
        ]
        assert question in case.tokenizer.rules.decode(got)
