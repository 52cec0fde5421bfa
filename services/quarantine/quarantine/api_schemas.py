"""The requests and responses of the admin API."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Body
from pydantic import BaseModel, ConfigDict, Field

from backstop_contracts import Actor, CaseStatus, Category, Verdict
from backstop_contracts.block_schemas import NO_NUL, BlockInput
from quarantine.quarantine_policies import Permissions
from quarantine.rules import ActionKind, MessageStatus
from quarantine.store import Action, QuarantinedMessage, QuarantineReport

MAX_MESSAGES = 200
"""Messages of one request."""


class _MessageSelection(BaseModel):
    model_config = ConfigDict(extra="forbid")

    messages: Annotated[list[UUID], Field(min_length=1, max_length=MAX_MESSAGES)]
    all_recipients: Annotated[
        bool, Field(description="Also act on the copies of the same messages for all other recipients.")
    ] = False


class Release(_MessageSelection):
    """Release the messages to their recipients; this approves a pending request."""

    action: Literal["release", "approve"]
    reason: Annotated[str | None, Field(max_length=500, pattern=NO_NUL)] = None


class Deny(_MessageSelection):
    """Deny the release. Name all recipients that share a row of the quarantine: Defender may deny it as a whole."""

    action: Literal["deny"]
    reason: Annotated[str, Field(min_length=1, max_length=500, pattern=NO_NUL)]


class SubmitFromQuarantine(_MessageSelection):
    """Submit the messages to Microsoft for analysis, and make `blocks` meanwhile."""

    action: Literal["submit"]
    category: Category
    blocks: Annotated[list[BlockInput], Field(max_length=20)] = []
    note: Annotated[str | None, Field(max_length=500, pattern=NO_NUL)] = None


ActionRequest = Annotated[Release | Deny | SubmitFromQuarantine, Body(discriminator="action")]


class SubmissionState(BaseModel):
    """A report of the message from the quarantine: its case, and Microsoft's verdict once there is one."""

    report_id: UUID
    case_id: UUID | None
    case_status: CaseStatus | None
    verdict: Verdict | None

    @classmethod
    def of(cls, report: QuarantineReport) -> "SubmissionState":
        """Return the state of a report."""
        return cls(
            report_id=report.report_id, case_id=report.case_id, case_status=report.status, verdict=report.verdict
        )


class QuarantinedSummary(BaseModel):
    """A quarantined message of one recipient, as an item of a list."""

    message_id: UUID
    network_message_id: str
    internet_message_id: str | None
    recipient: str
    sender: str | None
    subject: str | None
    received_at: datetime
    expires_at: datetime
    size: int
    direction: str
    quarantine_type: str
    policy_type: str
    policy_name: str
    quarantine_policy: str
    status: MessageStatus
    status_changed_at: datetime
    recipient_count: Annotated[int, Field(description="Recipients that share the row in Defender's quarantine.")]
    user_permissions: Annotated[list[str], Field(description="What the recipient may do with the message.")]


class QuarantinePage(BaseModel):
    """
    A page of quarantined messages: pending release requests first, then the latest.

    `next_cursor` is the `cursor` of the following page; null on the last. `synced_at` is when the list was last synced
    with Defender. `warning` says why the last sync failed, or which quarantine policies could not be read, so that
    their users are not served.
    """

    items: list[QuarantinedSummary]
    next_cursor: str | None
    synced_at: datetime | None
    warning: str | None


class ActionState(BaseModel):
    """An action and its outcome. `already_done`: the message was already in the requested state."""

    action_id: UUID
    message_id: UUID
    recipient: str
    action: ActionKind
    state: Literal["running", "succeeded", "failed"]
    already_done: bool
    failure: Annotated[str | None, Field(description="refused, not-allowed, gone or gave-up.")]
    detail: Annotated[str | None, Field(description="Microsoft's own reason where there is one.")]
    reason: str | None
    requested_by: Actor
    requested_at: datetime
    settled_at: datetime | None
    submission: SubmissionState | None


class QuarantinedDetail(QuarantinedSummary):
    """A quarantined message with its reports and its copies for other recipients."""

    submissions: list[SubmissionState]
    copies: Annotated[list[QuarantinedSummary], Field(description="The same message for its other recipients.")]


class ActionResults(BaseModel):
    """The outcome for each message of the request."""

    results: list[ActionState]


class LinkState(BaseModel):
    """A link of the message and where it really leads, with its host as DNS knows it."""

    text: str
    target: str
    host: str | None
    warnings: list[str]


class MailPreview(BaseModel):
    """What can be shown of a message. `document` is a whole, inert page for `<iframe sandbox srcdoc>`."""

    from_name: str | None
    from_address: str | None
    from_is_deceptive: bool
    to: list[str]
    subject: str | None
    text: str
    document: str
    links: list[LinkState]
    attachments: list[dict[str, Any]]
    is_cut: bool


class MailHeaders(BaseModel):
    """The headers of a message."""

    headers: str


def summary_fields(message: QuarantinedMessage) -> dict[str, Any]:
    """Return the fields of a message's QuarantinedSummary."""
    own = QuarantinedSummary.model_fields.keys() - {"user_permissions"}
    permissions = [str(bit.name).lower().replace("_", "-") for bit in Permissions if bit in message.permitted]
    return {**{name: getattr(message, name) for name in own}, "user_permissions": permissions}


def action_state(action: Action, message: QuarantinedMessage, report: QuarantineReport | None) -> ActionState:
    """Return the state of an action on *message*, with the report that it made."""
    return ActionState(
        action_id=action.action_id,
        message_id=action.message_id,
        recipient=message.recipient,
        action=action.kind,
        state="running" if action.state == "pending" else "succeeded" if action.state == "succeeded" else "failed",
        already_done=action.already_done,
        failure=action.failure,
        detail=action.detail,
        reason=action.reason,
        requested_by=action.requested_by,
        requested_at=action.requested_at,
        settled_at=action.settled_at,
        submission=SubmissionState.of(report) if report else None,
    )
