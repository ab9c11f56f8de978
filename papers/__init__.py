"""The two papers' experiments as recipes: one command each, with its figures, its table and its plot."""
