"""Training batches made on the device: the images of a split stay there, and a jitted program augments them."""
