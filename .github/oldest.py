"""Print the oldest versions that pyproject.toml allows, as constraints for pip: each lower bound's newest patch."""

import re
import sys
import tomllib
from pathlib import Path

BESIDE = ("pyarrow<21", "pyparsing<3.3")
"""What these versions need and don't say: datasets 4.0 with numpy 1, and matplotlib 3.9 without warnings."""

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = {name: texts for name, texts in project["optional-dependencies"].items() if name not in ("all", "dev", "docs")}
print(*BESIDE, sep="\n")
for requirement in [*project["dependencies"], *(text for texts in extras.values() for text in texts)]:
    bound = re.fullmatch(r"([\w-]+)>=(\d+\.[\d.]+)", requirement)
    if bound:
        print(f"{bound[1]}=={bound[2]}.*")
    elif "==" not in requirement:
        sys.exit(f"pyproject.toml: wanted NAME>=MAJOR.MINOR or NAME==VERSION, got '{requirement}'.")
