"""The command `truepair`: its verbs parse and call, nothing else."""

from truepair.cli.verbs import VERBS, main

__all__ = ["VERBS", "main"]
