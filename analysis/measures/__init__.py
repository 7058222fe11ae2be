"""Measure one weight matrix: figures, curves, recommendation."""
