"""Comparisons of freezing strategies and frameworks."""
