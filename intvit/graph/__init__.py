"""Graphs: the float network that was imported, and the integer network that it is lowered to."""
