"""Tests of segscse.evaluation."""
