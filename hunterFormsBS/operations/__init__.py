"""Functions of tensors that layers and kernels share; they import neither."""
