"""The texts that users read, in their language: a catalogue file per language, with English where a text is missing."""

import re
import tomllib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from mail import ENGLISH

FALLBACK = "en"
_FOLDER = Path(__file__).parent / "languages"
_LANGUAGE_RANGE = re.compile(r"\s*([a-z]{2,3})(?:-[a-z0-9-]+)?\s*+(?:;\s*q\s*=\s*([0-9.]+))?\s*", re.IGNORECASE)
_DATE_FORMATS = {"de": "%d.%m.%Y", "fr": "%d/%m/%Y", "es": "%d/%m/%Y"}


def _load(code: str) -> dict[str, str]:
    catalogue = tomllib.loads((_FOLDER / f"{code}.toml").read_text(encoding="utf-8"))
    texts: dict[str, str] = {}
    for section, entries in catalogue.items():
        if isinstance(entries, dict):
            texts |= {f"{section}.{key}": text for key, text in entries.items()}
        else:
            texts[section] = entries
    texts["preview.language"] = code
    return texts


_PREVIEW = {f"preview.{key}": text for key, text in ENGLISH.items()}
CATALOGUES: Mapping[str, Mapping[str, str]] = {
    file.stem: {**_PREVIEW, **_load(FALLBACK), **_load(file.stem)} for file in sorted(_FOLDER.glob("*.toml"))
}


class Texts:
    """The texts of one language: `texts("page.title")`, `texts("digest.more", count=3)`."""

    def __init__(self, code: str) -> None:
        self.code = code if code in CATALOGUES else FALLBACK
        self._texts = CATALOGUES[self.code]

    def __call__(self, key: str, **values: Any) -> str:
        """Return a text with *values* filled in, unescaped."""
        text = self._texts[key]
        return text.format(**values) if values else text

    def preview(self) -> dict[str, str]:
        """Return the texts that `mail.preview` and `mail.preview_page` need."""
        return {key: self._texts[f"preview.{key}"] for key in ENGLISH}

    def reason(self, quarantine_type: str) -> str:
        """Return why a message is held: the text of its first quarantine type."""
        return self._texts.get(f"reason.{quarantine_type.partition(',')[0].lower()}", self._texts["reason.other"])

    def date(self, moment: datetime, *, time: bool = False) -> str:
        """Format a date, optionally with its *time* in UTC."""
        day = moment.strftime(_DATE_FORMATS.get(self.code, "%Y-%m-%d"))
        return f"{day} {moment:%H:%M} UTC" if time else day


def choose_language(accepted: str, default: str) -> Texts:
    """Return the texts of the language that a browser prefers (Accept-Language, RFC 9110), or of *default*."""
    preferences: list[tuple[float, str]] = []
    for entry in accepted[:500].split(","):
        found = _LANGUAGE_RANGE.fullmatch(entry)
        if found:
            try:
                weight = float(found[2] or 1)
            except ValueError:
                continue
            preferences.append((weight, found[1].lower()))
    best = next(
        (code for weight, code in sorted(preferences, key=lambda one: -one[0]) if weight and code in CATALOGUES), None
    )
    return Texts(best or default)


def user_language(preferred: str | None, default: str) -> str:
    """Return the language with a catalogue for a user's preferredLanguage; *default* if there is none."""
    code = (preferred or "").partition("-")[0].lower()
    return code if code in CATALOGUES else Texts(default).code
