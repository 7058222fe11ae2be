"""Report on the comparison of the recipe ``digits``, and reload its adapter.

The parts of ``lowrank-ldu demo`` (``finetune`` extra).
"""
