"""Operators beside each other: the same data, steps and search for each, several seeds, and their costs."""
