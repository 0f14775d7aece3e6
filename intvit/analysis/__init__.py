"""What came of it: SQNR of traces against recordings, the mapping by it, reports, the demo; the battery for methods."""
