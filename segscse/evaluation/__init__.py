"""Evaluation: overlap, distances, paired comparison and the report; numpy and scipy, no torch."""
