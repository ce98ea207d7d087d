"""Between PyTorch checkpoints and JAX weights; the only package that imports torch."""
