"""What a device dumped against golden cases: where it went wrong first, and which single fault explains every element.

`compare` finds the sites, `causes` what explains them; `dump` is the border to files.
"""
