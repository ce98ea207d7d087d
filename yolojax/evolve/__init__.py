"""Evolution of hyperparameters and freezing."""
