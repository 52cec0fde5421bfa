"""How strict and how fast the simulator is."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """
    How strict and how fast the simulator is. Every field can be changed while it runs.

    The submission limits are those of Microsoft Learn, "Admin submissions" (150 in 15 minutes per tenant, the same
    item once in 15 minutes and 3 times in 24 hours); the list limits those of "Tenant Allow/Block List" with Defender
    for Office 365 Plan 2; the limit of blocked senders that of "Configure junk email settings". How many rows a page
    has and how large a mail may be is not documented: both numbers are assumptions.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    verdict_delay_seconds: float = Field(60, ge=0, description="From submission to verdict; for later submissions.")
    submissions_per_window: int = Field(150, ge=0)
    submissions_window_seconds: float = Field(900, gt=0)
    same_item_per_window: int = Field(1, ge=0)
    same_item_window_seconds: float = Field(900, gt=0)
    same_item_per_day: int = Field(3, ge=0)
    send_retry_after: bool = Field(True, description="Whether the limits' 429 answers carry Retry-After.")
    max_content_bytes: int = Field(25 * 1024 * 1024, gt=0, description="Largest mail accepted, decoded.")
    page_size: int = Field(100, gt=0, description="Rows of a Graph page when `$top` does not say.")
    drifted_shape: bool = Field(False, description="Answer `emailSubject` and `createdBy.user` as the samples do.")
    review_available: bool = Field(True, description="Whether the documented `review` action exists.")
    list_allow_limit: int = Field(5000, ge=0)
    list_block_limit: int = Field(10000, ge=0)
    blocked_senders_limit: int = Field(65535, ge=0)
    quarantine_lag_seconds: float = Field(
        0,
        ge=0,
        description="How long Get-QuarantineMessage does not see a mail, or what was done to it.",
    )
    allow_sender_available: bool = Field(
        False, description="Whether Release-QuarantineMessage takes AllowSender over the admin API."
    )
    partly_failed: Literal["warning", "error"] = Field(
        "warning", description="How the admin API says that an action failed for some of many Identities."
    )
    quarantine_permissions: Literal["string", "number", "neither"] = Field(
        "string",
        description="How Get-QuarantinePolicy says what users may do: EndUserQuarantinePermissions, ...Value, or not.",
    )
    exported_encoding: Literal["Base64", "7bit"] = Field(
        "Base64", description="BodyEncoding of exported mails; with 7bit, Eml is the mail itself."
    )
    message_ids_kept: bool = Field(
        True, description="Whether a mail keeps the internet message id that a client gave it."
    )
    sent_items_lag_seconds: float = Field(0, ge=0, description="How long a sent mail is not seen in Sent Items.")
    token_lifetime_seconds: int = Field(3599, gt=0)
