"""Sparse Memory Finetuning: teach a language model new facts, keep the old ones."""
