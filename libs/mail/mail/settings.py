"""The setting for where a program stores messages."""

from typing import Annotated

from pydantic import BaseModel, PlainValidator

from mail.store import MailStore, StoreUnavailable


def _open(url: object) -> MailStore:
    try:
        return MailStore(str(url))
    except (ValueError, StoreUnavailable) as error:
        # Their messages repeat the URL, which may contain a key.
        kind = type(error.__cause__ or error).__name__
        raise ValueError(f"set a location that this program can write to ({kind})") from None


class MailStoreSettings(BaseModel):
    """A mixin for a program's settings."""

    mail_store: Annotated[MailStore, PlainValidator(_open)]
    """Where raw messages are stored, as a URL: `file:///...`, `s3://...`, `az://...` or `gs://...`."""
