"""
Every event of Backstop, in the order of the story.

All models are frozen. Unknown fields are ignored when an event is read, so a producer may add a field before its
consumers know it. Times carry a zone. Ids are UUIDs; `tenant_id` is the Entra ID tenant (directory) id.

A vocabulary that may grow is a string: its enum names the values that are published today, and readers must expect
others. Three vocabularies are closed, because a reader that does not know the value cannot act safely: ReportedAs,
Category and CaseStatus. Words that Microsoft uses (`submissionResultCategory`, ...) are those of the Microsoft Graph
beta resource `emailThreatSubmission`.

Fields marked PERSONAL name a person or hold something of a message's content; contracts/FIELDS.md lists them all.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, ClassVar
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

PERSONAL: Any = Field(json_schema_extra={"x-personal": True})
"""Marks a field that names a person or holds something of a message's content."""


def _known(values: Iterable[str]) -> Any:
    """Describe an open vocabulary: *values* are published today."""
    return Field(examples=[str(value) for value in values])


class Part(BaseModel):
    """A frozen piece of an event."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Event(Part):
    """
    Something that happened, and that other services act upon.

    `TOPIC` is the event's name; one event type per topic. `VERSION` is the major version in the CloudEvents type; a
    breaking change is a new version on a new topic. `RETENTION_DAYS` is how long the topic keeps an event.
    """

    TOPIC: ClassVar[str]
    VERSION: ClassVar[int] = 1
    RETENTION_DAYS: ClassVar[int] = 7

    tenant_id: UUID

    @classmethod
    def topic(cls) -> str:
        """Return the event's topic without the installation's prefix: a new version is a new topic."""
        return cls.TOPIC if cls.VERSION == 1 else f"{cls.TOPIC}.v{cls.VERSION}"

    @property
    def subject(self) -> UUID:
        """The id of the thing that the event is about: the CloudEvents subject."""
        raise NotImplementedError

    @property
    def key(self) -> str:
        """The Kafka key. Events with the same key are delivered in order."""
        return f"{self.tenant_id}:{self.subject}"


class ReportedAs(StrEnum):
    """What the user said about the message, as Outlook's Report button offers it, plus malware. Closed."""

    PHISHING = "phishing"
    JUNK = "junk"
    MALWARE = "malware"
    NOT_JUNK = "not-junk"


class Folder(StrEnum):
    """Where the user met the message."""

    INBOX = "inbox"
    JUNK = "junk"
    QUARANTINE = "quarantine"


class Channel(StrEnum):
    """How a report came in."""

    API = "api"
    QUARANTINE = "quarantine"


class Category(StrEnum):
    """What a message is submitted to Microsoft as: Graph's `submissionCategory`, in kebab case. Closed."""

    PHISHING = "phishing"
    MALWARE = "malware"
    SPAM = "spam"
    NOT_JUNK = "not-junk"


class BlockKind(StrEnum):
    """What a block is about."""

    SENDER = "sender"
    DOMAIN = "domain"
    URL = "url"


class BlockScope(StrEnum):
    """Whom a block is for: the tenant (Tenant Allow/Block List) or one mailbox (Blocked Senders)."""

    TENANT = "tenant"
    MAILBOX = "mailbox"


class Delivery(Part):
    """
    What Exchange Online wrote into the message when it let it through.

    Source: Microsoft Learn, "Anti-spam message headers". A field is None when the message does not carry it.
    """

    scl: int | None = Field(None, description="Spam confidence level, -1 (trusted) to 9.")
    bcl: int | None = Field(None, description="Bulk complaint level, 0 to 9.")
    sfv: str | None = Field(None, description="Spam filter verdict, e.g. NSPM, SKN, SKA, SFE, BLK.")
    cat: str | None = Field(None, description="Category of protection policy, e.g. PHSH, SPM, BULK, UIMP.")
    sfty: str | None = Field(None, description="Safety tip, e.g. 9.19 for domain impersonation.")
    ipv: str | None = Field(None, description="IP verdict, e.g. CAL for the IP Allow List.")
    spf: str | None = Field(None, description="SPF result, e.g. pass, softfail, fail, none.")
    dkim: str | None = Field(None, description="DKIM result, e.g. pass, fail, none.")
    dmarc: str | None = Field(None, description="DMARC result, e.g. pass, bestguesspass, fail, none.")
    dmarc_action: str | None = Field(None, description="What Exchange did because of DMARC, e.g. none, quarantine.")
    compauth: str | None = Field(None, description="Composite authentication result: pass, softpass, fail, none.")
    compauth_reason: str | None = Field(None, description="Three-digit reason of composite authentication.")
    header_from: Annotated[str | None, PERSONAL] = Field(
        None, description="The From domain to which dmarc and compauth apply."
    )


class Attachment(Part):
    """A file of a message. The file itself is in no event."""

    name: Annotated[str | None, PERSONAL] = None
    content_type: Annotated[str, PERSONAL] = Field(description="As the message declares it, e.g. application/pdf.")
    size: int = Field(description="Bytes of the decoded file.")
    sha256: str = Field(description="SHA-256 of the decoded file, in hexadecimal.")


class Message(Part):
    """The facts of one message. The message itself is in the mail store under `sha256`."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the raw message.")]
    size: int = Field(description="Bytes of the raw message.")
    internet_message_id: str | None = Field(None, description="The Message-ID header, with angle brackets.")
    network_message_id: str | None = Field(None, description="Exchange Online's id of this delivery.")
    fingerprint: str | None = Field(None, description="The same for messages that say the same; None when too short.")
    sender: Annotated[str | None, PERSONAL] = Field(None, description="Address of the From header, in lower case.")
    sender_domain: Annotated[str | None, PERSONAL] = Field(
        None, description="Domain of the From header, in lower case; ASCII where it can."
    )
    envelope_sender: Annotated[str | None, PERSONAL] = Field(
        None, description="Address, or domain alone, of MAIL FROM, as far as the headers show it."
    )
    sender_ip: Annotated[str | None, PERSONAL] = Field(
        None, description="The connecting address that Exchange Online saw."
    )
    subject: Annotated[str | None, PERSONAL] = None
    received_at: AwareDatetime | None = None
    urls: Annotated[tuple[str, ...], PERSONAL] = Field(
        (), description="Distinct links, link wrappers undone: at most 100, and 32,768 characters in all."
    )
    url_count: int = Field(0, description="All links of the message; more than `urls` has if they did not fit.")
    attachments: tuple[Attachment, ...] = Field((), description="At most 50; images inside the text included.")
    attachment_count: int = Field(0, description="All files of the message; more than `attachments` has if it is cut.")
    delivery: Delivery = Delivery()

    @property
    def is_authenticated(self) -> bool:
        """Whether DMARC or composite authentication passed for the domain of the sender that the message shows."""
        passed = "pass" in (self.delivery.dmarc, self.delivery.compauth)
        return passed and self.sender_domain is not None and self.delivery.header_from == self.sender_domain


class MailboxMessage(Part):
    """Where a message is in Exchange Online, when that is known: Graph's `messageUrl` is made of it."""

    user_id: Annotated[str, PERSONAL] = Field(description="Object id or address of the mailbox's user.")
    message_id: str = Field(description="Graph's id of the message in that mailbox.")


class ActorKind(StrEnum):
    """What an actor is: a signed-in person, an application, or a rule of the policy file."""

    USER = "user"
    APP = "app"
    POLICY = "policy"


class Actor(Part):
    """Who decided something."""

    kind: Annotated[str, _known(ActorKind)]
    id: Annotated[str, PERSONAL] = Field(description="Object id in Entra ID, or the rule's name.")
    name: Annotated[str | None, PERSONAL] = Field(None, description="For display only; never used to decide.")


class Block(Part):
    """A sender, domain or URL to block: for the tenant or for one mailbox."""

    block_id: UUID
    scope: Annotated[str, _known(BlockScope)]
    kind: Annotated[str, _known(BlockKind)]
    value: Annotated[str, PERSONAL] = Field(
        description="The address or the domain, in lower case, or the absolute URL."
    )
    mailbox: Annotated[str | None, PERSONAL] = Field(
        None, description="Object id or address of the mailbox; only with scope mailbox."
    )
    case_id: UUID | None = Field(None, description="The case it was decided in; only with scope tenant.")
    report_id: UUID | None = Field(None, description="The report it came with; only with scope mailbox.")
    expires_at: AwareDatetime | None = Field(None, description="When the entry ends; None: never.")


class AppliedBlock(Block):
    """A block that is in force."""

    entry: Annotated[str | None, PERSONAL] = Field(
        None, description="The entry in Microsoft's list: a URL as host and path, for example."
    )


class DecidedBlock(Part):
    """A block that an admin decided together with the submission: of the sender, its domain, or one URL."""

    kind: Annotated[str, _known(BlockKind)]
    url: Annotated[str | None, PERSONAL] = Field(None, description="Only with kind url: an absolute URL.")
    expires_at: AwareDatetime | None = Field(None, description="When the entry ends; None: never.")


class AdminDecision(Part):
    """What an admin decided about a message while reporting it; triage applies it to the message's case."""

    category: Category | None = Field(None, description="Submit it to Microsoft as this; None: do not.")
    blocks: tuple[DecidedBlock, ...] = ()
    note: Annotated[str | None, PERSONAL] = None
    decided_by: Actor


class MessageReported(Event):
    """A user reported a message. Published by reporter or quarantine once the report and its message are durable."""

    TOPIC: ClassVar[str] = "message-reported"

    report_id: UUID
    reporter: Annotated[str, PERSONAL] = Field(description="Address of the mailbox that received the message.")
    reporter_id: Annotated[str | None, PERSONAL] = Field(
        None, description="Object id of the signed-in person; None: an application reported for them."
    )
    reported_as: ReportedAs
    folder: Annotated[str, _known(Folder)] = Field(description="Where the user met the message.")
    channel: Annotated[str, _known(Channel)] = Field(description="How the report came in.")
    reported_at: AwareDatetime
    message: Message
    mailbox_message: MailboxMessage | None = None
    blocks: tuple[Block, ...] = Field(
        (), description="Requested with it by the reporter, for their own mailbox; block-applied says which were made."
    )
    decision: AdminDecision | None = Field(
        None, description="Only when an admin reports; its publisher has checked the role."
    )

    @property
    def subject(self) -> UUID:
        """The report."""
        return self.report_id

    @property
    def key(self) -> str:
        """The message's own identity, so that reports of one message arrive in order."""
        return f"{self.tenant_id}:{self.message.internet_message_id or self.message.sha256}"


class CaseStatus(StrEnum):
    """A case moves open -> submitted -> resolved, or open -> dismissed; a failed submission reopens it. Closed."""

    OPEN = "open"
    SUBMITTED = "submitted"
    RESOLVED = "resolved"
    DISMISSED = "dismissed"


class CaseChange(StrEnum):
    """What happened to a case."""

    OPENED = "opened"
    JOINED = "joined"
    SUBMITTED = "submitted"
    REOPENED = "reopened"
    RESOLVED = "resolved"
    DISMISSED = "dismissed"


class CaseUpdated(Event):
    """A case changed. Published by triage, which owns cases."""

    TOPIC: ClassVar[str] = "case-updated"

    case_id: UUID
    change: Annotated[str, _known(CaseChange)]
    status: CaseStatus = Field(description="After the change.")
    report_ids: tuple[UUID, ...] = Field((), description="The reports that opened or joined the case just now.")
    report_count: int = Field(description="All reports of the case so far.")
    changed_by: Actor | None = None
    note: Annotated[str | None, PERSONAL] = None
    changed_at: AwareDatetime

    @property
    def subject(self) -> UUID:
        """The case."""
        return self.case_id


class SubmissionRequested(Event):
    """An admin or the policy wants Microsoft to analyse the message of a case. Published by triage."""

    TOPIC: ClassVar[str] = "submission-requested"

    submission_id: UUID
    case_id: UUID
    category: Category
    recipient: Annotated[str, PERSONAL] = Field(
        description="A mailbox that received the message; Microsoft checks policies against it."
    )
    folders: tuple[Annotated[str, _known(Folder)], ...] = Field(
        (), description="Where the case's reporters met the message."
    )
    message: Message
    mailbox_message: MailboxMessage | None = None
    requested_by: Actor
    requested_at: AwareDatetime

    @property
    def subject(self) -> UUID:
        """The case."""
        return self.case_id


class BlockEvent(Event):
    """What all events about a block share. Not an event of its own."""

    block: Block

    @property
    def subject(self) -> UUID:
        """The case, or the report of a block that a user wants for their own mailbox."""
        return self.block.case_id or self.block.report_id or self.block.block_id


class BlockRequested(BlockEvent):
    """Somebody wants a block. Published by triage (scope tenant), reporter and quarantine (scope mailbox)."""

    TOPIC: ClassVar[str] = "block-requested"

    note: Annotated[str | None, PERSONAL] = None
    requested_by: Actor
    requested_at: AwareDatetime


class SubmissionCreated(Event):
    """Microsoft took the submission. Published by submitter."""

    TOPIC: ClassVar[str] = "submission-created"

    submission_id: UUID
    case_id: UUID
    graph_id: str = Field(description="Microsoft Graph's id of the emailThreatSubmission.")
    category: Category
    recipient: Annotated[str, PERSONAL]
    folders: tuple[Annotated[str, _known(Folder)], ...] = Field(
        (), description="Where the case's reporters met the message."
    )
    adopted: bool = Field(description="True when an earlier, unanswered call was found to have made it.")
    message: Message
    created_at: AwareDatetime = Field(description="Microsoft's createdDateTime.")

    @property
    def subject(self) -> UUID:
        """The case."""
        return self.case_id


class DelayReason(StrEnum):
    """What a submission waits for."""

    QUOTA = "quota"
    SAME_ITEM = "same-item"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    UNAUTHORISED = "unauthorised"


class SubmissionDelayed(Event):
    """A submission waits, and for what. Published by submitter, once per submission and reason."""

    TOPIC: ClassVar[str] = "submission-delayed"

    submission_id: UUID
    case_id: UUID
    reason: Annotated[str, _known(DelayReason)]
    detail: Annotated[str, PERSONAL]
    retry_at: AwareDatetime = Field(description="The earliest next attempt.")
    delayed_at: AwareDatetime

    @property
    def subject(self) -> UUID:
        """The case."""
        return self.case_id


class SubmissionFailure(StrEnum):
    """Why a submission was given up."""

    REFUSED = "refused"
    MAIL_MISSING = "mail-missing"
    GAVE_UP = "gave-up"


class SubmissionFailed(Event):
    """A submission will not be made. Published by submitter; triage reopens the case."""

    TOPIC: ClassVar[str] = "submission-failed"

    submission_id: UUID
    case_id: UUID
    reason: Annotated[str, _known(SubmissionFailure)]
    detail: Annotated[str, PERSONAL] = Field(description="Microsoft's own reason where there is one.")
    failed_at: AwareDatetime

    @property
    def subject(self) -> UUID:
        """The case."""
        return self.case_id


class Recommendation(Part):
    """One change of the tenant's setup."""

    action: Annotated[str, PERSONAL] = Field(description="What to do, in one sentence.")
    setting: str | None = Field(None, description="The setting, as Microsoft names it.")
    policy: Annotated[str | None, PERSONAL] = Field(
        None, description="The name of the policy, rule, connector or mailbox that holds it."
    )
    cmdlet: Annotated[str | None, PERSONAL] = Field(
        None, description="The Exchange Online cmdlet that changes it, with its parameters."
    )


class Cause(Part):
    """Why the filter let the message through."""

    rule: str = Field(description="Stable id of the rule that found it, e.g. R04.")
    title: str
    evidence: Annotated[tuple[str, ...], PERSONAL] = Field(
        description="What shows it: result, headers, settings. No content of the message."
    )
    recommendations: tuple[Recommendation, ...] = ()
    source: str | None = Field(None, description="The Microsoft page that describes it.")


class DetectedFile(Part):
    """An attachment in which Microsoft found a threat."""

    name: Annotated[str | None, PERSONAL] = None
    sha256: str | None = None


class Conclusion(StrEnum):
    """Microsoft's verdict in one word. Treat one that you do not know as unknown."""

    THREAT = "threat"
    CLEAN = "clean"
    SIMULATION = "simulation"
    UNKNOWN = "unknown"


class Override(StrEnum):
    """What a setting did to the message, where Microsoft says no more."""

    ALLOWED = "allowed"
    BLOCKED = "blocked"


class Verdict(Part):
    """What Microsoft says about a submission, why the message was allowed, and what to change."""

    submission_id: UUID
    graph_id: str = Field(description="Microsoft Graph's id of the emailThreatSubmission.")
    conclusion: Annotated[str, _known(Conclusion)]
    verdict: str = Field(description="Microsoft's `submissionResultCategory`, in its own words.")
    detail: str | None = Field(None, description="Microsoft's `submissionResultDetail`, in its own words.")
    override: Annotated[str | None, _known(Override)] = Field(
        None,
        description="A setting of the organisation or of the recipient allowed or blocked the message, and Microsoft"
        " says no more, so the conclusion is unknown.",
    )
    user_mailbox_settings: tuple[str, ...] = Field((), description="Microsoft's `userMailboxSetting` flags.")
    detected_urls: Annotated[tuple[str, ...], PERSONAL] = ()
    detected_files: tuple[DetectedFile, ...] = ()
    causes: tuple[Cause, ...] = Field((), description="Strongest first.")
    settings_read: bool = Field(description="False when the tenant's settings could not be read.")
    read_at: AwareDatetime


class VerdictReady(Verdict, Event):
    """
    The verdict of a submission, with the facts of the message, so that it can be acted upon without other topics.

    Published by verdict-poller, exactly one per submission. When Microsoft gave no result within 26 hours,
    `verdict` is `noResultAvailable` and `conclusion` is unknown.
    """

    TOPIC: ClassVar[str] = "verdict-ready"

    case_id: UUID
    category: Category = Field(description="What the message was submitted as.")
    recipient: Annotated[str, PERSONAL] = Field(description="The mailbox for which Microsoft analysed the message.")
    folders: tuple[Annotated[str, _known(Folder)], ...] = Field(
        (), description="Where the case's reporters met the message."
    )
    message: Message
    blocks: tuple[AppliedBlock, ...] = Field(
        (), description="The tenant's blocks of the case that were known to be in force by then."
    )

    @property
    def subject(self) -> UUID:
        """The case."""
        return self.case_id


class BlockApplied(BlockEvent):
    """The block is in force. Published by blocklist."""

    TOPIC: ClassVar[str] = "block-applied"

    already_present: bool = Field(description="True when the entry was there before.")
    entry: Annotated[str | None, PERSONAL] = Field(
        None, description="The entry in Microsoft's list: a URL as host and path, for example."
    )
    applied_at: AwareDatetime


class BlockFailure(StrEnum):
    """Why a block will not be made."""

    OWN_DOMAIN = "own-domain"
    PROTECTED_DOMAIN = "protected-domain"
    INVALID = "invalid"
    LIMIT = "limit"
    REFUSED = "refused"
    GAVE_UP = "gave-up"


class BlockFailed(BlockEvent):
    """The block will not be made. Published by blocklist."""

    TOPIC: ClassVar[str] = "block-failed"

    reason: Annotated[str, _known(BlockFailure)]
    detail: Annotated[str, PERSONAL] = Field(description="Microsoft's own reason where there is one.")
    failed_at: AwareDatetime


class BlockRemoval(StrEnum):
    """Why a block ended."""

    EXPIRED = "expired"
    VERDICT_CLEAN = "verdict-clean"


class BlockRemoved(BlockEvent):
    """The block is not in force any more. Published by blocklist."""

    TOPIC: ClassVar[str] = "block-removed"

    reason: Annotated[str, _known(BlockRemoval)]
    removed_at: AwareDatetime


class CaseExpired(Event):
    """
    A closed case has reached the end of its retention and is gone from triage, with its reports and its timeline.

    Published by triage. Consumers delete what they keep of the case; the id never comes back, because a later
    report of the same message opens a case of its own. The event is kept longer than others, so that a consumer which
    was away for weeks still deletes.
    """

    TOPIC: ClassVar[str] = "case-expired"
    RETENTION_DAYS: ClassVar[int] = 30

    case_id: UUID
    report_count: int = Field(description="All reports that the case had.")
    last_active_at: AwareDatetime = Field(description="When something last happened to the case.")
    expired_at: AwareDatetime

    @property
    def subject(self) -> UUID:
        """The case."""
        return self.case_id


class ReleaseDecision(StrEnum):
    """What was decided about a quarantined message."""

    RELEASE = "release"
    DENY = "deny"
    REQUEST = "request"


class ReleaseDecided(Event):
    """
    The release of a quarantined message was granted, denied or requested, and that was carried out or refused.

    Published by quarantine, one per decision and recipient, once its outcome is known.
    """

    TOPIC: ClassVar[str] = "release-decided"

    decision_id: UUID
    message_id: UUID = Field(description="The quarantined message of this recipient.")
    network_message_id: str = Field(description="Exchange Online's id of this delivery.")
    internet_message_id: str | None = None
    identity: str = Field(description="Exchange Online's Identity of the message in the quarantine.")
    recipient: Annotated[str, PERSONAL]
    decision: Annotated[str, _known(ReleaseDecision)]
    succeeded: bool
    already_done: bool = Field(False, description="True when somebody had done the same before.")
    detail: Annotated[str | None, PERSONAL] = Field(
        None, description="Why it failed, in Microsoft's words where there are any."
    )
    reason: Annotated[str | None, PERSONAL] = Field(None, description="Why it was decided, in the decider's words.")
    decided_by: Actor
    decided_at: AwareDatetime

    @property
    def subject(self) -> UUID:
        """The quarantined message."""
        return self.message_id


EVENTS: tuple[type[Event], ...] = (
    MessageReported,
    CaseUpdated,
    SubmissionRequested,
    BlockRequested,
    SubmissionCreated,
    SubmissionDelayed,
    SubmissionFailed,
    BlockApplied,
    BlockFailed,
    BlockRemoved,
    VerdictReady,
    CaseExpired,
    ReleaseDecided,
)
"""Every event, in the order of the story."""
