"""Report: one HTML page about a mapping, with the data that it is made from beside it.

collect measures and gives a Report, which is what report.json holds; page turns that into HTML and reads nothing else.
"""
