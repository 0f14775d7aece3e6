"""Proofs about an integer graph: intervals and widths of every intermediate, ties of roundings, clamps that never act.

Everything is derived from the integers of the graph alone, in exact arithmetic, for every input that fits the types:
no sample decides anything. `walk.prove` does it; docs/prove.md derives the rules.
"""
