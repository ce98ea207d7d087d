"""Which parameters stay as they are: selectors, labels, strategies, audit. Plain functions over plain trees."""
