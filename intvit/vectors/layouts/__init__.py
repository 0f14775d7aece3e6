"""Where each integer of a tensor lies in a memory, as data, and the file formats in which hardware tools hold memories.

`layout` is the description, `memory` puts arrays into words and takes them out, `formats` knows the files, and `dump`
writes and reads a whole folder of them. docs/layouts.md is the reference.
"""
