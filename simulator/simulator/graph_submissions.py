"""
Microsoft Graph beta, `/security/threatSubmission/emailThreats`.

Shapes follow Microsoft Learn, "emailThreatSubmission resource type" and the pages of its methods. What those pages do
not document (`$orderby`, `$search`, `$select`, PATCH, DELETE, other filters) is refused rather than guessed.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote, unquote, urlencode

from aiohttp import web

from simulator.calls import Call, Perform, RefusalError, answer, json_response
from simulator.delivery import Delivery
from simulator.graph_calls import authorized, bad, json_object, only_options, render, stamp
from simulator.mail import Mail, NotAMailError, read_mail
from simulator.odata_filter import Condition, InvalidFilterError, parse_filter
from simulator.state import State
from simulator.submission_entity import preference_applied, submission_entity
from simulator.submissions import Submission
from simulator.tenant import Tenant
from simulator.tokens import GRAPH
from simulator.verdicts import decide

ROOT = "/beta/security/threatSubmission/emailThreats"
CONTEXT = f"{GRAPH}/beta/$metadata#security/threatSubmission/emailThreats"

READ = ("ThreatSubmission.Read.All", "ThreatSubmission.ReadWrite.All")
WRITE = ("ThreatSubmission.ReadWrite.All",)

CATEGORIES = ("notJunk", "spam", "phishing", "malware")
REVIEWS = {"notspam": "notJunk", "notjunk": "notJunk", "junk": "spam", "phishing": "phishing", "malware": "malware"}

TYPE_NAMES = {
    f"#microsoft.graph.{namespace}{kind}": f"#microsoft.graph.security.{kind}"
    for namespace in ("", "security.")
    for kind in ("emailUrlThreatSubmission", "emailContentThreatSubmission")
}

_ADDRESS = re.compile(r"[^\s@<>\",;]+@[^\s@<>\",;]+\.[^\s@<>\",;]+")
_MESSAGE_URL = re.compile(r"https://[^/]+/(?:v1\.0|beta)/users/([^/?#]+)/messages/([^/?#]+)/?")
_COMPOUND_FILE = bytes.fromhex("d0cf11e0a1b11ae1")
_MAX_TOP = 1000


def add_routes(app: web.Application, state: State) -> None:
    """Serve the submissions under `/beta/security/threatSubmission`."""

    def serve(method: str, path: str, name: str, perform: Perform) -> None:
        async def handle(request: web.Request) -> web.Response:
            return await answer(Call(state, request), f"graph.emailThreats.{name}", render, perform)

        app.router.add_route(method, path, handle)

    serve("GET", ROOT, "list", _list)
    serve("POST", ROOT, "create", _create)
    serve("GET", f"{ROOT}/$count", "count", _count)
    serve("GET", f"{ROOT}/{{id}}", "get", _get)
    serve("POST", f"{ROOT}/{{id}}/review", "review", _review)

    async def miss(request: web.Request) -> web.Response:
        return await answer(Call(state, request), "graph.other", render, _other)

    app.router.add_route("*", "/{version:v1\\.0|beta}/{rest:.*}", miss)


def make_submission(
    tenant: Tenant,
    state: State,
    mail: Mail,
    recipient: str,
    category: str,
    source: Literal["administrator", "user"],
    odata_type: str,
    creator: dict[str, str | None],
) -> Submission:
    """Store a submission. Its verdict is decided now and shown after the delay in the settings."""
    now = state.clock.now()
    submission = Submission(
        number=len(tenant.submissions.all) + 1,
        mail=replace(mail, text="", links=()),
        recipient=recipient,
        category=category,
        source=source,
        odata_type=odata_type,
        created=now,
        due=now + timedelta(seconds=state.settings.verdict_delay_seconds),
        verdict=decide(Delivery(mail, recipient, tenant, now, source)),
        creator=creator,
    )
    tenant.submissions.add(submission)
    return submission


async def _create(call: Call) -> web.Response:
    tenant = authorized(call, WRITE)
    settings = call.state.settings
    body = await json_object(call)
    odata_type = TYPE_NAMES.get(str(body.get("@odata.type")))
    if odata_type is None:
        raise bad("The property '@odata.type' must name emailUrlThreatSubmission or emailContentThreatSubmission.")
    category, recipient, action = _category(body), _recipient(body), _list_action(body)
    if odata_type.endswith("emailUrlThreatSubmission"):
        message_url = str(body.get("messageUrl"))
        mail = await asyncio.to_thread(_read, _message_at(message_url, tenant))
    else:
        message_url = None
        mail = await asyncio.to_thread(_read_content, body.get("fileContent"), settings.max_content_bytes)

    item, now = (mail.internet_message_id, recipient), call.state.clock.now()
    wait = tenant.submissions.seconds_to_wait(item, now, settings)
    if wait is not None:
        after = wait if settings.send_retry_after else None
        raise RefusalError(429, "TooManyRequests", "Please retry again later.", after)
    tenant.submissions.count(item, now)
    app = tenant.settings.app(call.app or "")
    creator = {"id": app.object_id if app else call.app, "displayName": app.name if app else None, "email": None}
    submission = make_submission(tenant, call.state, mail, recipient, category, "administrator", odata_type, creator)
    submission.message_url, submission.list_action = message_url, action
    form, rule = "link" if message_url else "content", submission.verdict.rule
    call.record("submissions", {**_identity(submission, category), "form": form, "list_action": action, "rule": rule})
    headers = {"Location": f"{GRAPH}{ROOT}/{submission.id}", **preference_applied(call)}
    return json_response({"@odata.context": f"{CONTEXT}/$entity", **submission_entity(call, submission)}, 201, headers)


def _category(body: dict[str, Any]) -> str:
    category = body.get("category")
    if category not in CATEGORIES:
        raise bad(f"The property 'category' must be one of {', '.join(CATEGORIES)}.")
    return str(category)


def _recipient(body: dict[str, Any]) -> str:
    recipient = body.get("recipientEmailAddress")
    if not isinstance(recipient, str) or not _ADDRESS.fullmatch(recipient):
        raise bad("The property 'recipientEmailAddress' must be an SMTP address.")
    return recipient.lower()


def _list_action(body: dict[str, Any]) -> dict[str, Any] | None:
    """
    Read the wish to allow or block.

    It is kept and answered, but makes no list entry: whether it does at Microsoft is not documented.
    """
    action = body.get("tenantAllowOrBlockListAction")
    if action is None:
        return None
    if not isinstance(action, dict) or action.get("action") not in ("allow", "block"):
        raise bad("The property 'tenantAllowOrBlockListAction/action' must be allow or block.")
    expires = action.get("expirationDateTime")
    if expires is not None:
        try:
            datetime.fromisoformat(expires)
        except (TypeError, ValueError) as error:
            raise bad("The property 'expirationDateTime' must be an Edm.DateTimeOffset.") from error
    return {"action": action["action"], "expirationDateTime": expires, "note": action.get("note"), "results": []}


def _message_at(url: str, tenant: Tenant) -> bytes:
    found = _MESSAGE_URL.fullmatch(url)
    if found is None:
        raise bad("The property 'messageUrl' must look like https://graph.microsoft.com/beta/users/{id}/messages/{id}.")
    mailbox = tenant.mailbox(unquote(found[1]))
    raw = mailbox.messages.get(unquote(found[2])) if mailbox else None
    if raw is None:
        raise RefusalError(404, "ErrorItemNotFound", "The specified object was not found in the store.")
    return raw


def _read(raw: bytes) -> Mail:
    try:
        return read_mail(raw)
    except NotAMailError as error:
        raise bad(f"The submitted content is not a mail. {error}") from error


def _read_content(content: object, limit: int) -> Mail:
    if not isinstance(content, str) or not content:
        raise bad("The property 'fileContent' must be the mail in base64.")
    if len(content) * 3 // 4 - content[-2:].count("=") > limit:
        raise RefusalError(413, "RequestEntityTooLarge", f"The mail is larger than {limit} bytes.")
    try:
        raw = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad("The property 'fileContent' is not base64.") from error
    if raw.startswith(_COMPOUND_FILE):
        raise bad("The submitted content is an Outlook .msg file; the simulator reads .eml files.")
    return _read(raw)


async def _get(call: Call) -> web.Response:
    submission = _submission(call, READ)
    body = {"@odata.context": f"{CONTEXT}/$entity", **submission_entity(call, submission)}
    return json_response(body, headers=preference_applied(call))


def _submission(call: Call, roles: Iterable[str]) -> Submission:
    tenant = authorized(call, roles)
    found = tenant.submissions.by_id.get(call.request.match_info["id"])
    if found is None:
        raise RefusalError(404, "ResourceNotFound", "The submission was not found.")
    return found


async def _review(call: Call) -> web.Response:
    submission = _submission(call, WRITE)
    if not call.state.settings.review_available:
        message = "No HTTP resource was found that matches the request URI."
        raise RefusalError(404, "ResourceNotFound", message)
    given = str((await json_object(call)).get("category", ""))
    category = REVIEWS.get(given.lower())
    if category is None:
        raise bad("The property 'category' must be notSpam, junk, phishing or malware.")
    if submission.source != "user":
        raise bad("Only submissions made by users can be reviewed.")
    now = call.state.clock.now()
    submission.review = {"reviewBy": call.app or "", "reviewDateTime": stamp(now), "reviewResult": category}
    call.record("reviews", _identity(submission, category))
    return web.Response(status=204)


def _identity(submission: Submission, category: str) -> dict[str, Any]:
    """Return what the ledger names a submission by, and the category that it was given now."""
    return {
        "id": submission.id,
        "internet_message_id": submission.mail.internet_message_id,
        "recipient": submission.recipient,
        "sha256": submission.mail.sha256,
        "category": category,
    }


async def _other(call: Call) -> web.Response:
    """Refuse what is not served here, `/v1.0/security/threatSubmission` above all: the resource is in beta only."""
    segment = call.request.match_info["rest"].rstrip("/").rpartition("/")[2]
    raise bad(f"Resource not found for the segment '{segment}'.")


async def _count(call: Call) -> web.Response:
    tenant = authorized(call, READ)
    only_options(call, {"$filter"})
    return web.Response(text=str(len(_matching(call, tenant))), content_type="text/plain")


async def _list(call: Call) -> web.Response:
    """Return a page, newest first. The skip token is a position, so later submissions do not shift the pages."""
    tenant = authorized(call, READ)
    only_options(call, {"$filter", "$top", "$skipToken", "$count"})
    query = call.request.query
    top, before = _top(call), _before(query.get("$skipToken"))
    matching = _matching(call, tenant)
    rest = [submission for submission in reversed(matching) if before is None or submission.number < before]
    page = rest[:top]
    body: dict[str, Any] = {"@odata.context": CONTEXT}
    if query.get("$count", "").lower() == "true":
        body["@odata.count"] = len(matching)
    if len(rest) > top:
        kept = {key: value for key, value in query.items() if key != "$skipToken"}
        token = base64.urlsafe_b64encode(str(page[-1].number).encode()).decode()
        following = urlencode({**kept, "$skipToken": token}, safe="$", quote_via=quote)
        body["@odata.nextLink"] = f"{call.request.url.origin()}{ROOT}?{following}"
    body["value"] = [submission_entity(call, submission) for submission in page]
    return json_response(body, headers=preference_applied(call))


def _top(call: Call) -> int:
    given = call.request.query.get("$top", str(call.state.settings.page_size))
    if not given.isdecimal() or not 1 <= int(given) <= _MAX_TOP:
        raise bad(f"Invalid value '{given}' for $top.")
    return int(given)


def _before(token: str | None) -> int | None:
    if token is None:
        return None
    try:
        return int(base64.urlsafe_b64decode(token))
    except ValueError as error:
        raise bad("The value of $skipToken is not valid.") from error


def _matching(call: Call, tenant: Tenant) -> list[Submission]:
    try:
        conditions = parse_filter(call.request.query.get("$filter", ""))
    except InvalidFilterError as error:
        raise bad(f"Invalid filter clause: {error}") from error
    now = call.state.clock.now()
    return [s for s in tenant.submissions.all if all(_holds(s, condition, now) for condition in conditions)]


def _holds(submission: Submission, condition: Condition, now: datetime) -> bool:
    match condition.field:
        case "source":
            return submission.source == condition.value
        case "status":
            return submission.status(now) == condition.value
        case "createdBy/email":
            return (submission.creator["email"] or "").lower() == str(condition.value).lower()
        case _:
            moment = condition.moment
            return submission.created >= moment if condition.operator == "ge" else submission.created < moment
