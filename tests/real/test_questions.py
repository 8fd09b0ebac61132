"""Real questions and texts: answers, scores and losses are those of `transformers`."""

import gzip
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from smf_jax.data.batches import Batch
from smf_jax.data.prompts import Prompt, PromptFormat, encode_asked
from smf_jax.data.tokenizer import encode_text
from smf_jax.evaluate import answers
from smf_jax.evaluate.normalise import normalise, squad_normalise
from smf_jax.evaluate.perplexity import text_loss
from smf_jax.evaluate.scores import is_exact, token_f1

DATA = Path(
    os.environ.get("SMF_DATA_DIR", Path(__file__).parents[3] / "shared" / "data")
)
QUESTIONS = int(os.environ.get("SMF_REAL_QUESTIONS", 4))
SHOTS, NEW, ROWS_PER_BATCH = 5, 16, 8
FILES = ("qa/triviaqa_open.jsonl.gz", "heldout/nq_open_dev.jsonl.gz")
CASES = list(itertools.product(FILES, ["few-shot", "chat"]))
if "SMF_REAL_QUESTIONS" not in os.environ:  # each takes seconds to compile
    CASES = CASES[::3]  # each file, and each kind of prompt
TEXTS, WIDTH = "text/wikipedia_en_2015_0.jsonl.gz", 256
TEXT_ROWS = min(64, QUESTIONS)


def read(name, count):
    """Returns the first rows of a file of data, which is not everywhere."""
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} is missing: SMF_DATA_DIR names another folder")
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in itertools.islice(file, count)]


def generate(torch_model, prompts):
    """Returns what `transformers` adds to each prompt, several at a time."""
    import torch

    new = [[]] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), ROWS_PER_BATCH):
        part = order[start : start + ROWS_PER_BATCH]
        width = max(len(prompts[index]) for index in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(part):
            ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, width - len(prompts[index]) :] = 1
        options = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0}
        made = torch_model.generate(ids, attention_mask=mask, **options)
        for row, index in enumerate(part):
            new[index] = made[row, width:].tolist()
    return new


def score(text, accepted):
    """Returns exact match and F1 of an answer by our rule, and then by SQuAD's."""
    rules, measures = (normalise, squad_normalise), (is_exact, token_f1)
    return [measure(text, accepted, rule) for rule in rules for measure in measures]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_question_is_answered_and_scored_as_by_transformers(
    model, tokenizer, torch_model, torch_tokenizer, name, kind, monkeypatch
):
    from tests.reference import ask_transformers

    rows = read(name, SHOTS + QUESTIONS)
    shots = tuple((row["question"], row["answers"][0]) for row in rows[:SHOTS])
    rows = rows[SHOTS:]
    questions = [row["question"] for row in rows]
    stop = ("\n",) if kind == "few-shot" else ()
    form = PromptFormat(kind, shots, stop)
    want_ids = [
        ask_transformers.prompt_ids(torch_tokenizer, kind, question, shots)
        for question in questions
    ]
    want = [
        ask_transformers.decode(torch_tokenizer, ids, stop)[0]
        for ids in generate(torch_model, want_ids)
    ]
    monkeypatch.setattr(answers, "PROMPTS_PER_BATCH", ROWS_PER_BATCH)
    prompts = [Prompt(question, question, ()) for question in questions]

    got_ids = [encode_asked(tokenizer, form, question) for question in questions]
    got = answers.answer(model, tokenizer, prompts, NEW, form)

    assert got_ids == want_ids
    assert got == want
    accepted = [row["answers"] for row in rows]
    scores = np.array([*map(ask_transformers.score, want, accepted)], float)
    np.testing.assert_allclose([*map(score, got, accepted)], scores, rtol=1e-12)
    means = " ".join(f"{mean:.4f}" for mean in scores.mean(0))
    print(f"{name} {kind}: {len(rows)} questions, EM F1, by SQuAD's rule: {means}")


def test_the_loss_of_texts_is_that_of_transformers(
    model, tokenizer, torch_model, torch_tokenizer
):
    import torch

    ids = []
    for row in read(TEXTS, 200):
        text = encode_text(tokenizer, row["text"])
        assert text == [*torch_tokenizer(row["text"]).input_ids, tokenizer.eos]
        ids += text
    tokens = np.array(ids[: TEXT_ROWS * (WIDTH + 1)], np.int32).reshape(-1, WIDTH + 1)
    zeros, ones = np.zeros(WIDTH, np.int32), np.ones(WIDTH, np.int32)
    places = (np.arange(WIDTH, dtype=np.int32), ones, zeros)
    weights = np.ones(WIDTH, np.float32)
    rows = [Batch(row[:-1], row[1:], weights, *places) for row in tokens]
    losses = []
    with torch.no_grad():
        for row in torch.from_numpy(tokens).long():
            logits = torch_model(row[None, :-1]).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits, row[1:]).item())

    got = text_loss(model, rows, 4)

    print(f"{TEXTS}: {got.n} rows, loss {got.loss:.6f} and {np.mean(losses):.6f}")
    assert got.n == TEXT_ROWS
    assert got.loss == pytest.approx(np.mean(losses), abs=1e-4)
