"""What a freeze costs before it is trained."""
