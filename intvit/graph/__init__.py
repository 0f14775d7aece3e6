"""Graphs as values: tensors and nodes, the kinds of operators, what an integer graph must hold, and its file.

What is here: `ir`, `inttypes`, `layout` moves, `ranges`, `parameters` of methods, `operators` (one file a kind),
`check`, `text` and `store`. What is not: how a graph is made (`floats`, `lowering`) and how it is run (`engine`).
"""
