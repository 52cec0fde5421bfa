"""Who may do what, and which service does it: all of it is in this one table."""

from dataclasses import dataclass

REPORTER = "Reporter"
SECURITY_READER = "SecurityReader"
SECURITY_ADMINISTRATOR = "SecurityAdministrator"


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of the API. Parameters of a path are UUIDs; a caller needs one of *roles*; it may take a mail."""

    method: str
    path: str
    roles: tuple[str, ...]
    upstream: str
    takes_mail: bool = False


ROUTES = (
    Route("POST", "/v1/reports", (REPORTER,), "reporter", takes_mail=True),
    Route("GET", "/v1/reports/{report_id}", (REPORTER, SECURITY_READER, SECURITY_ADMINISTRATOR), "reporter"),
    Route("GET", "/v1/cases", (SECURITY_READER, SECURITY_ADMINISTRATOR), "triage"),
    Route("GET", "/v1/cases/{case_id}", (SECURITY_READER, SECURITY_ADMINISTRATOR), "triage"),
    Route("POST", "/v1/cases/{case_id}/decisions", (SECURITY_ADMINISTRATOR,), "triage"),
    Route("GET", "/v1/quarantine", (SECURITY_READER, SECURITY_ADMINISTRATOR), "quarantine"),
    Route("POST", "/v1/quarantine/actions", (SECURITY_ADMINISTRATOR,), "quarantine"),
    Route("GET", "/v1/quarantine/actions/{action_id}", (SECURITY_READER, SECURITY_ADMINISTRATOR), "quarantine"),
    Route("GET", "/v1/quarantine/settings", (SECURITY_READER, SECURITY_ADMINISTRATOR), "quarantine"),
    Route("PUT", "/v1/quarantine/settings", (SECURITY_ADMINISTRATOR,), "quarantine"),
    Route("GET", "/v1/quarantine/{message_id}", (SECURITY_READER, SECURITY_ADMINISTRATOR), "quarantine"),
    Route("GET", "/v1/quarantine/{message_id}/preview", (SECURITY_ADMINISTRATOR,), "quarantine"),
    Route("GET", "/v1/quarantine/{message_id}/document", (SECURITY_ADMINISTRATOR,), "quarantine"),
    Route("GET", "/v1/quarantine/{message_id}/headers", (SECURITY_ADMINISTRATOR,), "quarantine"),
    Route("GET", "/v1/quarantine/{message_id}/download", (SECURITY_ADMINISTRATOR,), "quarantine"),
)
