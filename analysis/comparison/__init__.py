"""Comparison of a base checkpoint with a fine-tuned one: what of the update the base's own terms can express."""
