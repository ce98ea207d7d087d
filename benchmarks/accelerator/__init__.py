"""The acceptance of a real accelerator: ``python -m benchmarks.accelerator``."""
