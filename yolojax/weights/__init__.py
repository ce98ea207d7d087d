"""Weights: keeping them, finding them, starting a network from them."""
