"""`lowrank-ldu demo`: the whole path on real data, in minutes."""

from lowrank_ldu.cli.demo.command import demo

__all__ = ["demo"]
