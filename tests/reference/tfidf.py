"""Counts, scores and selection of slots by loops, in float64."""

import math

import numpy as np


def count_reads(slots, is_token, num_slots):
    """Returns how often tokens read each slot."""
    counts = np.zeros(num_slots, int)
    for token in np.ndindex(*is_token.shape):
        if is_token[token]:
            for slot in slots[token]:
                counts[slot] += 1
    return counts


def tfidf(counts, document_frequency, num_documents):
    """Returns counts / sum(counts) * log((num_documents + 1) / (df + 1))."""
    total = max(sum(counts), 1)
    return np.array(
        [
            count / total * math.log((num_documents + 1) / (frequency + 1))
            for count, frequency in zip(counts, document_frequency, strict=True)
        ]
    )


def contrastive(
    counts,
    document_frequency,
    num_documents,
    fact_frequency,
    num_facts,
    rarity,
    contrast,
):
    """Returns share of reads * idf**rarity * (log of rarity among facts)**contrast.

    The base of the last power is scaled to 1 for a slot of one fact, and is at least 0.
    """
    scores = []
    for slot, count in enumerate(counts):
        of_text = math.log((num_documents + 1) / (document_frequency[slot] + 1))
        of_facts = math.log((num_facts + 1) / (fact_frequency[slot] + 1))
        of_facts /= math.log((num_facts + 1) / 2)
        share = count / max(sum(counts), 1)
        scores.append(share * of_text**rarity * min(max(of_facts, 0), 1) ** contrast)
    return np.array(scores)


def kl(counts, document_frequency):
    """Returns the terms above 0 of KL(share of reads || share of df + 1)."""
    total, background = max(sum(counts), 1), sum(document_frequency) + len(counts)
    scores = []
    for count, frequency in zip(counts, document_frequency, strict=True):
        p, q = count / total, (frequency + 1) / background
        scores.append(max(p * math.log(p / q), 0) if count else 0)
    return np.array(scores)


def top_slots(scores, top_t):
    """Returns at most top_t slots that score above 0, best first, ties to lower."""
    ranked = sorted((-score, slot) for slot, score in enumerate(scores) if score > 0)
    return [slot for _, slot in ranked[:top_t]]
