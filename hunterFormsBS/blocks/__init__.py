"""What a layer is: the formulas that the model is made of, in ordinary PyTorch."""
