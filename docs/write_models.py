"""Write the table of networks into docs/guide/models.md, from the models that the tests check."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/guide/models.md"
_PLACE = re.compile(r"(?<=<!-- models -->\n).*(?=<!-- /models -->)", re.DOTALL)

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    from support.models import table

    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_PLACE.sub(lambda _: f"\n{table()}\n\n", text), encoding="utf-8")
