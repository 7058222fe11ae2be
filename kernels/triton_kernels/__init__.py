"""Provide the Triton kernels.

They are projection, expansion, both in one launch for few rows, and the sum by adapter.
"""
