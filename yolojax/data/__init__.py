"""From files to batches of images and boxes; NumPy only."""
