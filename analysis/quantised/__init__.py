"""Weights that are stored in few bits, with what makes numbers of them beside them: one module for each way."""
