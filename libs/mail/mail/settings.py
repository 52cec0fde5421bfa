"""Where mails are kept, as a setting of a program."""

from typing import Annotated

from pydantic import BaseModel, PlainValidator

from mail.store import MailStore, StoreUnavailable


def _open(url: object) -> MailStore:
    try:
        return MailStore(str(url))
    except (ValueError, StoreUnavailable) as error:
        # Their texts repeat the URL, which may hold a key.
        kind = type(error.__cause__ or error).__name__
        raise ValueError(f"give a place that this program can write to ({kind})") from None


class MailStoreSettings(BaseModel):
    """A setting to mix into those of a program."""

    mail_store: Annotated[MailStore, PlainValidator(_open)]
    """Where raw mails are kept, given as a URL: `file:///...`, `s3://...`, `az://...` or `gs://...`."""
