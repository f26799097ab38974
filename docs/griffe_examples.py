"""Examples of docstrings, for the Python reference.

griffe knows ``Examples:`` only. It reads ``Example:``, which docstrings here use, as a box of prose, where a prompt of
three ``>`` is a quotation in a quotation in a quotation. So the title is changed before griffe reads the docstring.
"""

import re
from typing import Any

import griffe

_TITLE = re.compile(r"^([ \t]*)Example:[ \t]*$", re.MULTILINE)


class Examples(griffe.Extension):
    """Read a section ``Example:`` as examples: prose, and code with its output."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the title of the section; what is shown above the example stays ``Example:``."""
        if obj.docstring is not None:
            obj.docstring.value = _TITLE.sub(r"\1Examples: Example:", obj.docstring.value)
