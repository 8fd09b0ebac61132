"""Questions put to a model's folder by transformers, one at a time, and their scores.

python -m tests.reference.ask_transformers FOLDER FACTS.jsonl plain|few-shot|chat
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.reference.answer_scores import exact, f1, our_words, squad_words


def prompt_ids(tokenizer, kind, question, shots=()):
    """Returns the ids of a prompt; shots are questions with their answers."""
    if kind == "chat":
        messages = []
        for asked, answered in shots:
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answered})
        messages.append({"role": "user", "content": question})
        chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return chat.input_ids
    if kind == "few-shot":
        text = ""
        for asked, answered in shots:
            text += f"Question: {asked}\nAnswer: {answered}\n\n"
        question = text + f"Question: {question}\nAnswer:"
    return tokenizer(question).input_ids


def generate(model, ids, max_new_tokens):
    """Returns the ids that follow greedily, with that of the end."""
    prompt = torch.tensor([ids])
    mask = torch.ones_like(prompt)
    options = {"do_sample": False, "max_new_tokens": max_new_tokens}
    return model.generate(prompt, attention_mask=mask, **options)[
        0, len(ids) :
    ].tolist()


def decode(tokenizer, ids, stop=()):
    """Returns the text of ids, and which stop string ended it, or None."""
    text = ""
    for count, token in enumerate(ids, 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=True)
        alone = tokenizer.decode([token], skip_special_tokens=True)
        found = [(text.index(string), string) for string in stop if string in text]
        # A byte is lost in the text if the character before it is incomplete.
        found += [(len(text), string) for string in stop if string in alone]
        if found:
            start, string = min(found)
            return text[:start].strip(), string
    return text.strip(), None


def score(text, accepted):
    """Returns exact match and F1 of an answer by our rule, and then by SQuAD's."""
    rules = our_words, squad_words
    return [measure(rule, text, accepted) for rule in rules for measure in (exact, f1)]


def main(folder, path, kind):
    """Prints the questions of a file with answers and scores."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for fact in map(json.loads, Path(path).read_text().splitlines()):
        ids = generate(model, prompt_ids(tokenizer, kind, fact["question"]), 32)
        text, _ = decode(tokenizer, ids, [] if kind == "chat" else ["\n"])
        print(json.dumps([fact["question"], text, score(text, fact["answers"])]))


if __name__ == "__main__":
    main(*sys.argv[1:])
