"""What Django 1.11 needs in order to start on Python 3.10 and 3.11.

Two names that later Pythons dropped are put back: the abstract base classes in `collections`,
and `codeset=` of `gettext.translation`. Nothing that still exists changes. `stack.py` copies
this file into the environments it makes, and a one-line `.pth` file imports it there.
"""

import collections
import collections.abc
import gettext
import inspect
from typing import Any

# collections.Mapping, collections.Iterator, ... are gone since Python 3.10.
for _name in collections.abc.__all__:
    if not hasattr(collections, _name):
        setattr(collections, _name, getattr(collections.abc, _name))

# codeset= is gone since Python 3.11; Django 1.11 passes codeset="utf-8", which it is anyway.
if "codeset" not in inspect.signature(gettext.translation).parameters:
    _translation = gettext.translation

    def _translation_with_codeset(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("codeset", None)
        return _translation(*args, **kwargs)

    gettext.translation = _translation_with_codeset

# Gone since Python 3.11 too. It had no effect on str.
if not hasattr(gettext.NullTranslations, "set_output_charset"):
    setattr(  # noqa: B010  (the attribute is unknown to the type checker)
        gettext.NullTranslations, "set_output_charset", lambda self, charset: None
    )
