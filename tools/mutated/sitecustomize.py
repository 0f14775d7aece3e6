"""On the path of a test run of `tools/mutate.py`: every Python process of that run gets the mutant."""

import json
import os
from pathlib import Path

import mutant_import

if "INTVIT_MUTANT" in os.environ:
    mutant_import.install(**json.loads(Path(os.environ["INTVIT_MUTANT"]).read_text()))
