"""
Every event of Backstop, in the order of the story.

All models are frozen. Unknown fields are ignored when an event is read, so that a producer may add a field before
its consumers know it. All times are UTC. Ids are UUIDs; `tenant_id` is the Entra ID tenant (directory) id.

Words in quotes from Microsoft (`submissionCategory`, `submissionResultCategory`, ...) are those of the Microsoft Graph
beta resource `emailThreatSubmission`. They are open strings wherever Microsoft may add values.
"""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A frozen piece of an event."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Event(Part):
    """
    Something that happened, and that other services act upon.

    `TOPIC` is the event's name; one event type per topic. `VERSION` is the major version in the CloudEvents type; a
    breaking change is a new version on a new topic.
    """

    TOPIC: ClassVar[str]
    VERSION: ClassVar[int] = 1
    RETENTION_DAYS: ClassVar[int] = 7

    tenant_id: UUID

    @classmethod
    def topic(cls) -> str:
        """Name the event's topic without the installation's prefix: a new version is a new topic."""
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
    """What the user said about the mail, as Outlook's Report button offers it, plus malware."""

    PHISHING = "phishing"
    JUNK = "junk"
    MALWARE = "malware"
    NOT_JUNK = "not-junk"


class Folder(StrEnum):
    """The folder in which the user met the mail."""

    INBOX = "inbox"
    JUNK = "junk"


class Category(StrEnum):
    """What a mail is submitted to Microsoft as: Graph's `submissionCategory`."""

    PHISHING = "phishing"
    MALWARE = "malware"
    SPAM = "spam"
    NOT_JUNK = "notJunk"


class Delivery(Part):
    """
    What Exchange Online wrote into the mail when it let it through.

    Source: Microsoft Learn, "Anti-spam message headers". A field is None when the mail does not carry it.
    """

    scl: int | None = Field(None, description="Spam confidence level, -1 (trusted) to 9.")
    bcl: int | None = Field(None, description="Bulk complaint level, 0 to 9.")
    sfv: str | None = Field(None, description="Spam filter verdict, e.g. NSPM, SKN, SKA, SFE, BLK.")
    cat: str | None = Field(None, description="Category of protection policy, e.g. PHSH, SPM, BULK, UIMP.")
    sfty: str | None = Field(None, description="Safety tip, e.g. 9.19 for domain impersonation.")
    ipv: str | None = Field(None, description="IP verdict, e.g. CAL for the IP Allow List.")
    spf: str | None = None
    dkim: str | None = None
    dmarc: str | None = None
    dmarc_action: str | None = None
    compauth: str | None = Field(None, description="Composite authentication result: pass, softpass, fail, none.")
    compauth_reason: str | None = Field(None, description="Three-digit reason of composite authentication.")
    header_from: str | None = Field(None, description="The From domain to which dmarc and compauth apply.")


class Message(Part):
    """The facts of one mail that services need. The mail itself lies in the mail store under `sha256`."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the raw mail.")]
    size: int = Field(description="Bytes of the raw mail.")
    internet_message_id: str | None = Field(None, description="The Message-ID header, with angle brackets.")
    network_message_id: str | None = Field(None, description="Exchange Online's id of this delivery.")
    fingerprint: str | None = Field(None, description="Same for mails with the same content; None when too short.")
    sender: str | None = Field(None, description="Address of the From header.")
    sender_domain: str | None = None
    envelope_sender: str | None = Field(None, description="Address of MAIL FROM, as far as the headers show it.")
    sender_ip: str | None = Field(None, description="The connecting address that Exchange Online saw.")
    subject: str | None = None
    received_at: AwareDatetime | None = None
    delivery: Delivery = Delivery()

    @property
    def is_authenticated(self) -> bool:
        """Whether DMARC or composite authentication passed for the domain of the sender that the mail shows."""
        passed = "pass" in (self.delivery.dmarc, self.delivery.compauth)
        return passed and self.sender_domain is not None and self.delivery.header_from == self.sender_domain

    @property
    def content(self) -> str:
        """
        What makes two copies the same mail: what they say, and from whom it is.

        Of a mail that says too little, its id and subject stand for that. A sender chooses the Message-ID: alone, it
        makes nothing the same.
        """
        said = self.fingerprint or f"{self.internet_message_id or self.sha256} {self.subject or ''} {self._address}"
        return f"{said} {self.sender_domain or ''} {self.is_authenticated}"

    @property
    def identity(self) -> str:
        """What makes two reports of one person be about the same mail: the delivery, or the bytes, and the content."""
        delivery = self.network_message_id or self.sha256
        return f"{delivery} {self.internet_message_id or ''} {self._address} {self.content}"

    @property
    def _address(self) -> str:
        return (self.sender or "").lower()


class MailboxMessage(Part):
    """Where a mail lies in Exchange Online, when that is known: the `messageUrl` of Graph is made of it."""

    user_id: str = Field(description="Object id or address of the mailbox's user.")
    message_id: str = Field(description="Graph's id of the message in that mailbox.")


class Actor(Part):
    """Who wanted something: a signed-in person, an application, or a rule of the policy file."""

    kind: Literal["user", "app", "policy"]
    id: str = Field(description="Object id in Entra ID, or the rule's name.")
    name: str | None = Field(None, description="For display only; never used to decide.")


class WantedBlock(Part):
    """A block that an admin wants together with the submission: of the mail's sender, its domain, or one URL."""

    kind: str = Field(description="`sender`, `domain` or `url`; leave alone what you do not know.")
    url: str | None = Field(None, description="Only with kind url: an absolute http or https URL.")
    expires_at: AwareDatetime | None = Field(None, description="When the entry ends; None: never.")


class Wanted(Part):
    """What an admin has decided about a mail while reporting it; triage does it as if they decided on its case."""

    category: Category | None = Field(None, description="Submit it to Microsoft as this; None: do not.")
    blocks: tuple[WantedBlock, ...] = ()
    note: str | None = None
    by: Actor


class MessageReported(Event):
    """A user reported a mail. Published by reporter or quarantine once the report and its mail are durable."""

    TOPIC: ClassVar[str] = "message-reported"

    report_id: UUID
    reporter: str = Field(description="Address of the mailbox that received the mail.")
    reporter_id: str | None = Field(None, description="Object id of the signed-in person; None: an application spoke.")
    reported_as: ReportedAs
    folder: Folder
    origin: str = Field(description="The channel: `api`, later `mailbox`, `quarantine`, ...")
    reported_at: AwareDatetime
    message: Message
    mailbox_message: MailboxMessage | None = None
    wanted: Wanted | None = Field(None, description="Only when an admin reports; whoever publishes it checks the role.")

    @property
    def subject(self) -> UUID:
        """The report."""
        return self.report_id

    @property
    def key(self) -> str:
        """The mail's own identity, so that reports of one mail arrive in order."""
        return f"{self.tenant_id}:{self.message.internet_message_id or self.message.sha256}"


class CaseStatus(StrEnum):
    """A case moves open -> submitted -> resolved, or open -> dismissed; a submission that fails reopens it."""

    OPEN = "open"
    SUBMITTED = "submitted"
    RESOLVED = "resolved"
    DISMISSED = "dismissed"


class CaseUpdated(Event):
    """A case changed. Published by triage, which owns cases."""

    TOPIC: ClassVar[str] = "case-updated"

    case_id: UUID
    change: Literal["opened", "joined", "submitted", "reopened", "resolved", "dismissed"]
    status: CaseStatus = Field(description="After the change.")
    report_ids: tuple[UUID, ...] = Field((), description="The reports that opened or joined the case just now.")
    report_count: int = Field(description="All reports of the case so far.")
    changed_by: Actor | None = None
    note: str | None = None
    changed_at: AwareDatetime

    @property
    def subject(self) -> UUID:
        """The case."""
        return self.case_id


class SubmissionRequested(Event):
    """An admin or the policy wants Microsoft to analyse the mail of a case. Published by triage."""

    TOPIC: ClassVar[str] = "submission-requested"

    submission_id: UUID
    case_id: UUID
    category: Category
    recipient: str = Field(description="A mailbox that received the mail; Microsoft checks policies against it.")
    message: Message
    mailbox_message: MailboxMessage | None = None
    requested_by: Actor
    requested_at: AwareDatetime

    @property
    def subject(self) -> UUID:
        """The case."""
        return self.case_id


class Block(Part):
    """A wish to block a sender: for the tenant (Tenant Allow/Block List) or for one mailbox (Blocked Senders)."""

    block_id: UUID
    scope: Literal["tenant", "mailbox"]
    kind: Literal["sender", "domain"]
    value: str = Field(description="The address or the domain, in lower case.")
    mailbox: str | None = Field(None, description="Object id or address of the mailbox; only with scope mailbox.")
    case_id: UUID | None = Field(None, description="The case it was decided in; only with scope tenant.")
    report_id: UUID | None = Field(None, description="The report it came with; only with scope mailbox.")
    expires_at: AwareDatetime | None = Field(None, description="When the entry ends; None: never.")


class BlockEvent(Event):
    """What all events about a block share. Not an event of its own."""

    block: Block

    @property
    def subject(self) -> UUID:
        """The case, or the report of a block that a user wants for their own mailbox."""
        return self.block.case_id or self.block.report_id or self.block.block_id


class BlockRequested(BlockEvent):
    """Somebody wants a sender blocked. Published by triage (scope tenant), reporter and quarantine (scope mailbox)."""

    TOPIC: ClassVar[str] = "block-requested"

    note: str | None = None
    requested_by: Actor
    requested_at: AwareDatetime


class BlockV2(Part):
    """
    A wish to block a sender, a domain or a URL.

    Version 2 of `Block`, of which only what version 1 cannot say is published: the kind `url`.
    """

    block_id: UUID
    scope: Literal["tenant", "mailbox"]
    kind: str = Field(description="`sender`, `domain` or `url`; leave alone what you do not know.")
    value: str = Field(description="The address or the domain, in lower case, or the absolute URL.")
    mailbox: str | None = Field(None, description="Object id or address of the mailbox; only with scope mailbox.")
    case_id: UUID | None = Field(None, description="The case it was decided in; only with scope tenant.")
    report_id: UUID | None = Field(None, description="The report it came with; only with scope mailbox.")
    expires_at: AwareDatetime | None = Field(None, description="When the entry ends; None: never.")


class BlockEventV2(Event):
    """What all events about a block share in version 2. Not an event of its own."""

    VERSION: ClassVar[int] = 2

    block: BlockV2

    @property
    def subject(self) -> UUID:
        """The case, or the report of a block that a user wants for their own mailbox."""
        return self.block.case_id or self.block.report_id or self.block.block_id


class BlockRequestedV2(BlockEventV2):
    """Somebody wants a URL blocked. Published by triage."""

    TOPIC: ClassVar[str] = "block-requested"

    note: str | None = None
    requested_by: Actor
    requested_at: AwareDatetime


class SubmissionCreated(Event):
    """Microsoft took the submission. Published by submitter."""

    TOPIC: ClassVar[str] = "submission-created"

    submission_id: UUID
    case_id: UUID
    graph_id: str = Field(description="Microsoft Graph's id of the emailThreatSubmission.")
    category: Category
    recipient: str
    adopted: bool = Field(description="True when an earlier, unanswered call was found to have made it.")
    message: Message
    created_at: AwareDatetime = Field(description="Microsoft's createdDateTime.")

    @property
    def subject(self) -> UUID:
        """The case."""
        return self.case_id


class SubmissionDelayed(Event):
    """A submission waits, and for what. Published by submitter, once per submission and reason."""

    TOPIC: ClassVar[str] = "submission-delayed"

    submission_id: UUID
    case_id: UUID
    reason: Literal["quota", "same-item", "throttled", "unavailable", "unauthorised"]
    detail: str
    until: AwareDatetime = Field(description="The earliest next attempt.")
    delayed_at: AwareDatetime

    @property
    def subject(self) -> UUID:
        """The case."""
        return self.case_id


class SubmissionFailed(Event):
    """A submission will not be made. Published by submitter; triage reopens the case."""

    TOPIC: ClassVar[str] = "submission-failed"

    submission_id: UUID
    case_id: UUID
    reason: Literal["refused", "mail-missing", "gave-up"]
    detail: str = Field(description="Microsoft's own reason where there is one.")
    failed_at: AwareDatetime

    @property
    def subject(self) -> UUID:
        """The case."""
        return self.case_id


class Recommendation(Part):
    """One change of the tenant's setup."""

    action: str = Field(description="What to do, in one sentence.")
    setting: str | None = Field(None, description="The setting, as Microsoft names it.")
    policy: str | None = Field(None, description="The name of the policy, rule, connector or mailbox that holds it.")
    cmdlet: str | None = Field(None, description="The Exchange Online cmdlet that changes it, with its parameters.")


class Cause(Part):
    """Why the filter let the mail through."""

    rule: str = Field(description="Stable id of the rule that found it, e.g. R04.")
    title: str
    evidence: tuple[str, ...] = Field(description="What shows it: result, headers, settings. No mail content.")
    recommendations: tuple[Recommendation, ...] = ()
    source: str | None = Field(None, description="The Microsoft page that describes it.")


class DetectedFile(Part):
    """An attachment in which Microsoft found a threat."""

    name: str | None = None
    sha256: str | None = None


class Conclusion(StrEnum):
    """Microsoft's verdict in one of four words."""

    THREAT = "threat"
    CLEAN = "clean"
    SIMULATION = "simulation"
    UNKNOWN = "unknown"


class VerdictReady(Event):
    """
    The verdict of a submission: what Microsoft says, why the mail was allowed, what to change.

    Published by verdict-poller, exactly one per submission. When Microsoft gave no result within 26 hours,
    `verdict` is `noResultAvailable` and `conclusion` is unknown.
    """

    TOPIC: ClassVar[str] = "verdict-ready"
    RETENTION_DAYS: ClassVar[int] = 30

    submission_id: UUID
    case_id: UUID
    graph_id: str
    conclusion: Conclusion
    verdict: str = Field(description="Microsoft's `submissionResultCategory`, in its own words.")
    detail: str | None = Field(None, description="Microsoft's `submissionResultDetail`, in its own words.")
    override: str | None = Field(
        None,
        description="`allowed` or `blocked`: a setting of the organisation or of the recipient did that to the mail, "
        "and Microsoft says no more, so the conclusion is unknown. Leave alone what you do not know.",
    )
    user_mailbox_settings: tuple[str, ...] = Field((), description="Microsoft's `userMailboxSetting` flags.")
    detected_urls: tuple[str, ...] = ()
    detected_files: tuple[DetectedFile, ...] = ()
    causes: tuple[Cause, ...] = Field((), description="Strongest first.")
    settings_read: bool = Field(description="False when the tenant's settings could not be read.")
    read_at: AwareDatetime

    @property
    def subject(self) -> UUID:
        """The case."""
        return self.case_id


class BlockApplied(BlockEvent):
    """The sender is blocked. Published by blocklist."""

    TOPIC: ClassVar[str] = "block-applied"

    already_present: bool = Field(description="True when the entry was there before.")
    entry: str | None = Field(None, description="The entry in Microsoft's list: a URL as host and path, for example.")
    applied_at: AwareDatetime


class BlockFailed(BlockEvent):
    """The sender will not be blocked. Published by blocklist."""

    TOPIC: ClassVar[str] = "block-failed"

    reason: Literal["own-domain", "protected-domain", "invalid", "limit", "refused", "gave-up"]
    detail: str = Field(description="Microsoft's own reason where there is one.")
    failed_at: AwareDatetime


class BlockRemoved(BlockEvent):
    """The sender is not blocked any more. Published by blocklist."""

    TOPIC: ClassVar[str] = "block-removed"

    reason: Literal["expired", "verdict-clean"]
    removed_at: AwareDatetime


class CaseExpired(Event):
    """
    A closed case has reached the end of its retention and is gone from triage, with its reports and its timeline.

    Published by triage. Whoever keeps something of the case forgets it now; the id never comes back, because a later
    report of the same mail opens a case of its own. The event is kept longer than others, so that a consumer which was
    away for weeks still forgets.
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


class BlockAppliedV2(BlockEventV2):
    """The URL is blocked. Published by blocklist."""

    TOPIC: ClassVar[str] = "block-applied"

    already_present: bool = Field(description="True when the entry was there before.")
    entry: str | None = Field(None, description="The entry in Microsoft's list: a URL as host and path, for example.")
    applied_at: AwareDatetime


class BlockFailedV2(BlockEventV2):
    """The URL will not be blocked. Published by blocklist."""

    TOPIC: ClassVar[str] = "block-failed"

    reason: str = Field(description="`own-domain`, `protected-domain`, `invalid`, `limit`, `refused`, `gave-up`, ...")
    detail: str = Field(description="Microsoft's own reason where there is one.")
    failed_at: AwareDatetime


class BlockRemovedV2(BlockEventV2):
    """The URL is not blocked any more. Published by blocklist."""

    TOPIC: ClassVar[str] = "block-removed"

    reason: str = Field(description="`expired`, `verdict-clean`, ...")
    removed_at: AwareDatetime


class ReleaseDecided(Event):
    """
    The release of a quarantined mail was granted, denied or asked for, and that was carried out or refused.

    Published by quarantine, one per decision and recipient, once its outcome is known.
    """

    TOPIC: ClassVar[str] = "release-decided"

    decision_id: UUID
    message_id: UUID = Field(description="The quarantined mail of this recipient.")
    network_message_id: str = Field(description="Exchange Online's id of this delivery.")
    internet_message_id: str | None = None
    identity: str = Field(description="Exchange Online's Identity of the mail in the quarantine.")
    recipient: str
    decision: str = Field(description="`release`, `deny` or `request`.")
    succeeded: bool
    already: bool = Field(False, description="True when the mail was in that state before, by whomsoever.")
    detail: str | None = Field(None, description="Why it failed, in Microsoft's words where there are any.")
    reason: str | None = Field(None, description="Why it was decided, in the words of whoever decided.")
    decided_by: Actor
    decided_at: AwareDatetime

    @property
    def subject(self) -> UUID:
        """The quarantined mail."""
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
    BlockRequestedV2,
    BlockAppliedV2,
    BlockFailedV2,
    BlockRemovedV2,
)
"""Every event, in the order of the story; second versions last."""
