"""Worlds drawn from a seed: documents, scenes and text with questions and answers, for training and tests.

One seed is one sample, always the same. Training draws its seeds from ``TRAIN_SEEDS``; the seeds below are
held out and are used by evaluation only.
"""

TRAIN_SEEDS = range(1_000_000, 2**62)
HELD_OUT_SEEDS = range(1_000_000)
