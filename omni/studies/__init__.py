"""Experiments on the parts of the family: small systems that differ in one thing, trained alike and compared."""
