"""From floats to integers: a float graph, ranges and a recipe become an integer graph.

What is here: `recipe` (every numeric choice), `observers` and `calibrate` (ranges of a recording), `widths` (where the
quantizers stand) and `context` (`lower`). What is not: what becomes of one operator, which stands with its kind in
`graph.operators`. Behind this folder no float decides anything.
"""
