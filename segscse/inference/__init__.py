"""Inference: sliding windows, the predictor and the model folder that it reads."""
