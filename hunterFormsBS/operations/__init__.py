"""Formulas on tensors that layers and kernels share; they know neither of the two."""
