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
    counts, document_frequency, num_documents, fact_frequency, num_facts, contrast=1.5
):
    """Returns tfidf * (log((F + 1) / (ff + 1)) / log((F + 1) / 2))**contrast.

    The base of the power lies in 0 .. 1.
    """
    scores = tfidf(counts, document_frequency, num_documents)
    for slot, frequency in enumerate(fact_frequency):
        share = math.log((num_facts + 1) / (frequency + 1))
        share /= math.log((num_facts + 1) / 2)
        scores[slot] *= min(max(share, 0), 1) ** contrast
    return scores


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
