"""Features kept: what a frozen front part computes of an image, computed once and read ever after."""
