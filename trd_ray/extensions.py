"""A user's own code, named in the configuration as `package.module:attribute`.

The module is imported by the process that needs it, never sent: a task and a gate by the driver, a
divergence by each learner rank too. It is found where Python looks (installed, `PYTHONPATH`, the working
directory of a job), and then in the folder in which the command was started.
"""

from __future__ import annotations

import importlib
import keyword
import os
import sys

from trd_ray.errors import ConfigError, describe

BROKEN = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError,
    RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip
"""What code that is wrong may raise while it is imported or tried out."""


def is_import_path(text: str) -> bool:
    """Whether `text` has the form `package.module:attribute`."""
    module, colon, attribute = text.partition(":")
    return bool(colon) and all(_is_name(part) for part in (*module.split("."), attribute))


def load_attribute(path: str, *, key: str) -> object:
    """The attribute that `path` names.

    Args:
        key: the option that holds it, for the message.

    Raises:
        ConfigError: it has another form, its module cannot be imported, or has no such attribute.
    """
    if not is_import_path(path):
        raise refused(
            key, path, "package.module:attribute", "name a module that Python can import, and what it holds"
        )
    module_name, _, attribute = path.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # last: a file that lies about here must not take the place of a library
    try:
        module = importlib.import_module(module_name)
    except BROKEN as error:
        raise refused(
            key,
            f"{path}: {type(error).__name__}: {error}",
            "a module that can be imported",
            f"mend it, install it, put its folder into PYTHONPATH, or start from that folder (now {here})",
        ) from error
    if not hasattr(module, attribute):
        names = sorted(name for name in vars(module) if not name.startswith("_"))
        raise refused(
            key,
            f"{path}: no {attribute}",
            f"one of {', '.join(names)}" if names else "an attribute of the module",
            f"correct the name; the module is {getattr(module, '__file__', None) or module_name}",
        )
    found: object = getattr(module, attribute)
    return found


def refused(key: str, got: object, expected: str, remedy: str) -> ConfigError:
    """The error about an extension that cannot be used."""
    return ConfigError(
        describe("code of yours cannot be used", where=key, got=got, expected=expected, remedy=remedy)
    )


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)
