"""Write the table of claims into verification/README.md: ``make claims``."""

import re
from pathlib import Path

import gftkit
from gftkit.verify.collect import collect
from gftkit.verify.runner import markdown

README = Path(__file__).with_name("README.md")
_PLACE = re.compile(r"(?<=<!-- claims -->\n).*(?=<!-- /claims -->)", re.DOTALL)


def written(text: str) -> str:
    """The text with the table of the claims that are installed."""
    return _PLACE.sub(lambda _: "\n" + markdown(collect(gftkit.load())) + "\n\n", text)


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
