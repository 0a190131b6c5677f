"""griffe: what the sources say in Python's way, as the site should have it.

* ``::`` before indented text is Markdown without the mark.
* Permission bits are octal; griffe knows their value only.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ALONE = re.compile(r"^( *)::\n", re.MULTILINE)
AT_THE_END = re.compile(r"::\n(?=\n)")


class Sources(griffe.Extension):
    """See the module docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of whatever was found."""
        if obj.docstring is not None:
            text = ALONE.sub("", f"{obj.docstring.value}\n")
            obj.docstring.value = AT_THE_END.sub(":\n", text).rstrip("\n")

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Rewrite the defaults of parameters that are permission bits."""
        for parameter in func.parameters:
            if parameter.name == "mode" and str(parameter.default).isdigit():
                parameter.default = oct(int(str(parameter.default)))
