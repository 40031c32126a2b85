"""Passwords and tokens leave no trace in what is recorded, whichever way they came there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from raybrain.config import SECRETS

HIDDEN = "***"
SHORTEST = 6
"""Characters of an environment variable's value; shorter ones are words that occur anywhere."""
NAMES = (*SECRETS, "passphrase", "private_key", "access_key", "apikey", "auth")
"""In the name of an environment variable whose value is never recorded."""
HARMLESS = ("1", "true", "false", "token", "disabled", "basic-auth")

_TOKEN = re.compile(r"(?i)(https?://)[^/\s@'\"]+@")
"""A user without a password is a name in a database's address and a token in a web address."""
_LOGIN = re.compile(r"(?<=://)[^/\s@:'\"]+:[^/\s@'\"]*@")
_PARAMETER = re.compile(
    rf"(?i)([?&;][^=&\s'\"]*(?:{'|'.join(SECRETS)})[^=&\s'\"]*=)[^&\s'\"]+",
)
_HEADER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}")


def redacted(text: str, *, secrets: Sequence[str] | None = None) -> str:
    """Return ``text`` without logins in URLs, tokens in queries and headers, and secret values.

    Parameters
    ----------
    text : str
    secrets : sequence of str, optional
        Values to hide; when not given, those of environment variables whose names say so.
    """
    if "://" in text:
        text = _LOGIN.sub(f"{HIDDEN}@", text)
        text = _TOKEN.sub(rf"\1{HIDDEN}@", text)
    text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    text = _HEADER.sub(rf"\1 {HIDDEN}", text)
    for value in secret_values() if secrets is None else secrets:
        text = text.replace(value, HIDDEN)
    return text


def redacted_tree(value: Any, *, secrets: Sequence[str]) -> Any:
    """Return plain lists and mappings with `redacted` texts; keys stay."""
    if isinstance(value, str):
        return redacted(value, secrets=secrets)
    if isinstance(value, dict):
        return {name: redacted_tree(one, secrets=secrets) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_tree(one, secrets=secrets) for one in value]
    return value


def secret_values() -> list[str]:
    """Return the values of environment variables that are named like secrets, longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if any(word in name.lower() for word in NAMES)
        and len(value) >= SHORTEST
        and value.lower() not in HARMLESS
        and not value.startswith(("/", "http://", "https://"))
    }
    return sorted(found, key=len, reverse=True)
