"""Compare a base checkpoint with a fine-tuned one."""
