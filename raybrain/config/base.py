"""What every section of an experiment is made of, and the one error that a user sees."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from raybrain import plugins

LONGEST_SHOWN = 120
"""Characters of a value that a message repeats."""


SECRET = "secret"


SECRETS = ("token", "secret", "password", "passwd", "pwd", "signature", "credential", "api_key")
"""In the name of a parameter of a URL."""


NO_SECRETS = (
    "holds a password or a token, and settings are logged; leave it out and set PGPASSWORD or "
    "~/.pgpass for a database, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a "
    "tracking server, or a bucket's own credentials"
)


class InputError(Exception):
    """Something a user wrote or pointed at is wrong; the message is one sentence with a remedy.

    It is no `ValueError`, so that whoever expects those of a parser does not catch it.
    """

    def __init__(self, message: str) -> None:
        # What a library says of its error may span lines.
        super().__init__(" ".join(line.strip() for line in str(message).splitlines() if line))


def extension(group: str, name: str) -> Any:
    """Return what an installed package adds under a name.

    Raises
    ------
    InputError
        If it cannot be imported, or two packages offer the name.
    """
    try:
        return plugins.load(group, name)
    except plugins.BrokenPluginError as error:
        raise InputError(str(error)) from error


def fill_environment(text: str) -> str:
    """Return ``text`` with ``${NAME}`` and ``${NAME:-default}`` replaced from the environment.

    Raises
    ------
    InputError
        If a variable without a default is not set.

    Examples
    --------
    >>> fill_environment("${SURELY_NOT_SET:-/data}/nsd")
    '/data/nsd'
    """

    def value(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = os.environ.get(name, default)
        if found is None:
            raise InputError(
                f"'{text}' needs the environment variable {name}, which is not set; "
                f"type: export {name}=/path/to/it"
            )
        return found

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", value, text)


def _location(text: str) -> str:
    try:
        filled = fill_environment(text)
    except InputError as error:
        raise ValueError(str(error)) from None  # pydantic adds the address of the setting
    if "://" not in filled:
        filled = os.path.expanduser(filled)  # noqa: PTH111 - Path would drop a leading ./
    if holds_secret(filled):
        raise PydanticCustomError(SECRET, NO_SECRETS)
    return filled


def holds_secret(address: str) -> bool:
    """Return whether a URL holds a password, a token or a signature.

    Examples
    --------
    >>> holds_secret("postgresql://me:word@host/db"), holds_secret("s3://lab/workspace")
    (True, False)
    """
    if "://" not in address:
        return False
    try:
        parts = urlsplit(address)
        user, password = parts.username, parts.password
        names = [name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    except ValueError:  # no URL at all, which whoever opens it will say
        return "@" in address
    token = parts.scheme in ("http", "https") and user is not None
    return password is not None or token or any(word in one for one in names for word in SECRETS)


Location = Annotated[str, AfterValidator(_location)]
"""A folder or a URL, which may not hold a password."""


def _path_part(text: str) -> str:
    if text in ("", ".", "..") or any(one in text for one in "/\\") or not text.isprintable():
        raise ValueError(
            "becomes the name of a folder or a file, so it can have no / and no \\ in it and "
            "cannot be . or ..; choose another name"
        )
    return text


PathPart = Annotated[str, AfterValidator(_path_part)]
"""A name that becomes a part of a path."""


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


Positive = Annotated[int, Field(ge=1)]


NonNegative = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A frozen part of an experiment; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    other_settings: ClassVar[type[BaseModel] | None] = None
    """What settings are that other packages name, where a section has any."""

    @model_validator(mode="before")
    @classmethod
    def _keep_sibling_defaults(cls, tree: Any) -> Any:
        # A default within a default section (max=2) must survive when a sibling (cpus) is given.
        if not isinstance(tree, dict):
            return tree
        merged = dict(tree)
        for name, field in cls.model_fields.items():
            default, given = field.default, tree.get(name)
            if isinstance(default, Section) and isinstance(given, dict):
                base = default.model_dump()
                if given.get("kind", base.get("kind")) == base.get("kind"):
                    merged[name] = {**base, **given}
        return merged
