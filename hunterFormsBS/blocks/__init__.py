"""Layers: the formulas of the model, in ordinary PyTorch."""
