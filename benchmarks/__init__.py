"""What hunterFormsBS costs, beside other packages: `python -m benchmarks.compare` in the project's folder."""
