"""Whole-case prediction: how a network meets an image of any size. Importing it loads no torch."""

from medgen.inference.predict import Inference, Predicts, estimate_memory_gb, predict_volume

__all__ = ["Inference", "Predicts", "estimate_memory_gb", "predict_volume"]
