"""From predictions to figures: non-maximum suppression, average precision, plots."""
