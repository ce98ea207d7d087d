"""YOLOv5 in JAX and Flax, for transfer learning by freezing layers and for research on freezing."""

__version__ = "0.1.0"
