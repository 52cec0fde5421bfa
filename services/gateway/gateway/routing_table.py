"""The routing table: which app roles may call a route, and which service handles it."""

from dataclasses import dataclass

REPORTER = "Reporter"
SECURITY_READER = "SecurityReader"
SECURITY_ADMINISTRATOR = "SecurityAdministrator"


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of the API. Path parameters are UUIDs; callers need one of the *roles*."""

    method: str
    path: str
    roles: tuple[str, ...]
    upstream: str
    accepts_message: bool = False
    """The body is a raw message: it may be larger, and its upload may take longer."""


ROUTES = (
    Route("POST", "/v1/reports", (REPORTER,), "reporter", accepts_message=True),
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
