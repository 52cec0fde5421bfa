"""One tenant: what is configured in it, its mailboxes, its Tenant Allow/Block List and its submissions."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from uuid import NAMESPACE_URL, uuid5

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from simulator.allow_block_list import AllowBlockList
from simulator.outgoing import Outgoing, OutgoingMail
from simulator.policies import default_rows
from simulator.quarantine import Quarantine
from simulator.submissions import Submissions

DEFAULT_APP = "0a1b2c3d-0000-4000-8000-00000000a001"
DEFAULT_SECRET = "simulated-client-secret"  # noqa: S105 - opens nothing but the simulator

Row = dict[str, Any]
Lower = Annotated[str, BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)]


class FederatedCredential(BaseModel):
    """A workload identity that an app trusts: tokens of *issuer* for *subject*, signed by *public_key* (PEM)."""

    model_config = ConfigDict(extra="forbid")

    issuer: str
    subject: str
    audience: str = "api://AzureADTokenExchange"
    public_key: str


class App(BaseModel):
    """
    An app registration with its grants. The defaults grant everything that Backstop needs.

    `exchange_role` is the Entra directory role (or Exchange role group) without which Exchange answers 403 to an app
    that does have `Exchange.ManageAsApp`. `security_role` is what the quarantine asks for: a reader reads, an
    administrator acts too.
    """

    model_config = ConfigDict(extra="forbid")

    client_id: Lower
    name: str = "Backstop"
    secrets: list[str] = []
    certificates: list[str] = Field([], description="PEM certificates whose keys may sign client assertions.")
    federated: list[FederatedCredential] = []
    graph_roles: list[str] = ["ThreatSubmission.ReadWrite.All", "Mail.Send", "Mail.ReadWrite"]
    exchange_roles: list[str] = ["Exchange.ManageAsApp"]
    exchange_role: bool = True
    security_role: Literal["Security Administrator", "Security Reader"] | None = "Security Administrator"

    @property
    def object_id(self) -> str:
        """The object id of the app's service principal."""
        return str(uuid5(NAMESPACE_URL, self.client_id))


class OrderedVerdict(BaseModel):
    """A verdict to give whatever the mail says. `status` may end the analysis otherwise than by success."""

    model_config = ConfigDict(extra="forbid")

    category: str
    detail: str = "none"
    status: str = "succeeded"
    user_mailbox_setting: str = "none"
    detected_urls: list[str] = []


class TenantSettings(BaseModel):
    """
    What can be set per tenant.

    `cmdlets` replaces the rows that a `Get-` cmdlet answers; cmdlets not named keep their default rows, and a `Get-`
    cmdlet that the simulator does not know becomes known. `verdicts` orders verdicts by internet message id.
    """

    model_config = ConfigDict(extra="forbid")

    id: Lower = Field(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
    name: str = "Contoso"
    accepted_domains: list[Lower] = Field(["contoso.example"], min_length=1)
    apps: list[App] = [App(client_id=DEFAULT_APP, secrets=[DEFAULT_SECRET])]
    any_mailbox: bool = Field(True, description="Every address of an accepted domain is a mailbox.")
    cmdlets: dict[str, list[Row]] = {}
    known_bad_hosts: list[Lower] = Field(["phish.example", "test"], description="Hosts; their subdomains count too.")
    known_bad_hashes: list[Lower] = Field([], description="SHA-256 of attachments.")
    verdicts: dict[str, OrderedVerdict] = {}

    def app(self, client_id: str) -> App | None:
        """Return the app with *client_id*."""
        return next((app for app in self.apps if app.client_id == client_id.lower()), None)


@dataclass
class Mailbox:
    """One mailbox: its junk email configuration, its contacts, the messages put into it, and those written in it."""

    address: str
    trusted: list[str] = field(default_factory=list)
    trusted_recipients: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    contacts: list[str] = field(default_factory=list)
    enabled: bool = True
    contacts_trusted: bool = False
    trusted_lists_only: bool = False
    messages: dict[str, bytes] = field(default_factory=dict)
    outgoing: Outgoing = field(default_factory=Outgoing)

    @property
    def user_id(self) -> str:
        """The object id of the mailbox's user."""
        return str(uuid5(NAMESPACE_URL, f"mailto:{self.address}"))


class Tenant:
    """A tenant while the simulator runs."""

    def __init__(self, settings: TenantSettings) -> None:
        self.settings = settings
        self.allow_block_list = AllowBlockList()
        self.submissions = Submissions()
        self.quarantine = Quarantine()
        self.mails: dict[int, OutgoingMail] = {}
        self._mailboxes: dict[str, Mailbox] = {}
        self._users: dict[str, Mailbox] = {}

    @property
    def id(self) -> str:
        """The tenant (directory) id."""
        return self.settings.id

    def rows(self, cmdlet: str) -> list[Row] | None:
        """Return what a `Get-` cmdlet answers here; None when there is no such cmdlet."""
        ordered = self.settings.cmdlets.get(cmdlet)
        return ordered if ordered is not None else default_rows(cmdlet, self.settings.accepted_domains)

    def accepts(self, address: str) -> bool:
        """Return True if *address* is in an accepted domain."""
        return address.rpartition("@")[2].lower() in self.settings.accepted_domains

    def mailbox(self, user: str) -> Mailbox | None:
        """Return the mailbox of *user*, given as address or object id; None when there is none."""
        user = user.lower()
        found = self._mailboxes.get(user) or self._users.get(user)
        if found is None and self.settings.any_mailbox and "@" in user and self.accepts(user):
            return self.add_mailbox(user)
        return found

    def add_mailbox(self, address: str) -> Mailbox:
        """Register a mailbox, or return the one that exists."""
        address = address.lower()
        if address not in self._mailboxes:
            mailbox = Mailbox(address)
            self._mailboxes[address] = mailbox
            self._users[mailbox.user_id] = mailbox
        return self._mailboxes[address]
