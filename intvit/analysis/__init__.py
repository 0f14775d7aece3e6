"""Analysis of integer runs against float recordings."""
