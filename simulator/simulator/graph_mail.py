"""
Microsoft Graph v1.0: write, send and find mail in a mailbox, as an application.

Shapes follow Microsoft Learn, "user: sendMail", "Create message", "Update message", "message: send", "List messages"
and "Get singleValueLegacyExtendedProperty". What is assumed beyond those pages stands in the README.
"""

import hashlib
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from aiohttp import web

from simulator.calls import Call, Perform, RefusalError, answer, json_response
from simulator.graph_calls import authorized, bad, json_object, only_options, render, stamp
from simulator.mail import bodies
from simulator.outgoing import OutgoingMail, UnsendableError, extended_properties, read_mime, written
from simulator.state import State
from simulator.tenant import Mailbox, Tenant
from simulator.tokens import GRAPH

ROOT = "/v1.0/users/{user}"
SEND, WRITE, READ = ("Mail.Send",), ("Mail.ReadWrite",), ("Mail.Read", "Mail.ReadWrite")
LARGEST_BODY = 4 * 1024 * 1024

_FOLDERS = {"drafts": "Drafts", "sentitems": "SentItems"}
_TEXT = r"'((?:[^']|'')*)'"
_BY_MESSAGE_ID = re.compile(rf"\s*internetMessageId\s+eq\s+{_TEXT}\s*")
_BY_PROPERTY = re.compile(
    rf"\s*singleValueExtendedProperties/any\(\s*(\w+)\s*:\s*\1/id\s+eq\s+{_TEXT}\s+and\s+\1/value\s+eq\s+{_TEXT}\s*\)\s*",
    re.IGNORECASE,
)
_DEFAULT_TOP, _MAX_TOP = 10, 1000


def add_routes(app: web.Application, state: State) -> None:
    """Serve `/v1.0/users/{user}`: sendMail, messages and the two folders that mail is sent through."""

    def serve(method: str, path: str, name: str, perform: Perform) -> None:
        async def handle(request: web.Request) -> web.Response:
            return await answer(Call(state, request), f"graph.{name}", render, perform)

        app.router.add_route(method, ROOT + path, handle)

    serve("POST", "/sendMail", "sendMail", _send_mail)
    serve("POST", "/messages", "messages.create", _create)
    serve("GET", "/messages", "messages.list", _list)
    serve("GET", "/mailFolders/{folder}/messages", "messages.list", _list)
    serve("GET", "/messages/{id}", "messages.get", _get)
    serve("PATCH", "/messages/{id}", "messages.update", _update)
    serve("DELETE", "/messages/{id}", "messages.delete", _delete)
    serve("POST", "/messages/{id}/send", "messages.send", _send)


def _mailbox(call: Call, roles: tuple[str, ...]) -> tuple[Tenant, Mailbox]:
    tenant = authorized(call, roles)
    user = call.request.match_info["user"]
    found = tenant.mailbox(user)
    if found is None:
        raise RefusalError(404, "ErrorInvalidUser", f"The requested user '{user}' is invalid.")
    return tenant, found


def _refused(error: UnsendableError) -> RefusalError:
    return RefusalError(403 if error.code == "ErrorSendAsDenied" else 400, error.code, str(error))


async def _composed(call: Call, mailbox: Mailbox, *, wrapped: bool) -> OutgoingMail:
    """Read a mail from the body: MIME in base64 as text/plain, or JSON, in which sendMail *wraps* the message."""
    now, keep_id = call.state.clock.now(), call.state.settings.message_ids_kept
    content = await call.request.read()
    if len(content) > LARGEST_BODY:
        raise RefusalError(413, "RequestEntityTooLarge", "The request is larger than 4 MB.")
    try:
        if call.request.content_type == "text/plain":
            return read_mime(content, mailbox.address, now, keep_id=keep_id)
        body = await json_object(call)
        message = body.get("message") if wrapped else body
        if not isinstance(message, dict):
            raise bad("The parameter 'message' is missing.")
        mail = written(message, mailbox.address, now, keep_id=keep_id)
        mail.saved = not wrapped or str(body.get("saveToSentItems", True)).lower() != "false"
    except UnsendableError as error:
        raise _refused(error) from error
    return mail


async def _send_mail(call: Call) -> web.Response:
    tenant, mailbox = _mailbox(call, SEND)
    mail = await _composed(call, mailbox, wrapped=True)
    _sent(call, tenant, mail, "sendMail")
    mailbox.outgoing.add(mail)
    return web.Response(status=202)


def _sent(call: Call, tenant: Tenant, mail: OutgoingMail, form: str) -> None:
    """Send *mail* and write it into the ledger."""
    try:
        mail.send(call.state.clock.now())
    except UnsendableError as error:
        raise _refused(error) from error
    entry = call.record(
        "mails",
        {
            "sender": mail.sender,
            "recipients": list(mail.recipients),
            "subject": mail.subject,
            "internet_message_id": mail.internet_message_id,
            "sha256": hashlib.sha256(mail.raw).hexdigest(),
            "form": form,
            "saved": mail.saved,
        },
    )
    if entry is not None:
        tenant.mails[entry["number"]] = mail


async def _create(call: Call) -> web.Response:
    _, mailbox = _mailbox(call, WRITE)
    mail = await _composed(call, mailbox, wrapped=False)
    mailbox.outgoing.add(mail)
    context = f"{GRAPH}/v1.0/$metadata#users('{mailbox.user_id}')/messages/$entity"
    return json_response({"@odata.context": context, **_entity(call, mail)}, 201)


def _named(call: Call, mailbox: Mailbox) -> OutgoingMail:
    found = mailbox.outgoing.find(call.request.match_info["id"])
    if found is None or (found.sent is not None and found.sent > _seen_until(call)):
        raise RefusalError(404, "ErrorItemNotFound", "The specified object was not found in the store.")
    return found


def _draft(call: Call, mailbox: Mailbox) -> OutgoingMail:
    found = _named(call, mailbox)
    if found.sent is not None:
        raise RefusalError(400, "ErrorInvalidOperation", "The item was sent already.")
    return found


def _seen_until(call: Call) -> datetime:
    return call.state.clock.now() - timedelta(seconds=call.state.settings.sent_items_lag_seconds)


async def _send(call: Call) -> web.Response:
    tenant, mailbox = _mailbox(call, SEND)
    _sent(call, tenant, _draft(call, mailbox), "draft")
    return web.Response(status=202)


async def _get(call: Call) -> web.Response:
    _, mailbox = _mailbox(call, READ)
    only_options(call, {"$select"})
    return json_response(_selected(call, _entity(call, _named(call, mailbox))))


async def _update(call: Call) -> web.Response:
    """Set extended properties, as a draft that was made from MIME can't have them from the beginning."""
    _, mailbox = _mailbox(call, WRITE)
    body = await json_object(call)
    other = sorted(set(body) - {"singleValueExtendedProperties"})
    if other:
        raise bad(f"The simulator does not change the property '{other[0]}'.")
    mail = _named(call, mailbox)
    try:
        mail.properties |= extended_properties(body)
    except UnsendableError as error:
        raise _refused(error) from error
    return json_response(_entity(call, mail))


async def _delete(call: Call) -> web.Response:
    _, mailbox = _mailbox(call, WRITE)
    mailbox.outgoing.remove(_named(call, mailbox))
    return web.Response(status=204)


async def _list(call: Call) -> web.Response:
    """Return drafts and sent messages, latest first, ten per page unless `$top` is given."""
    _, mailbox = _mailbox(call, READ)
    only_options(call, {"$filter", "$top", "$skip", "$select"})
    name = call.request.match_info.get("folder")
    if name is not None and name.lower() not in _FOLDERS:
        raise RefusalError(404, "ErrorFolderNotFound", "The simulator has the folders drafts and sentitems.")
    mails = mailbox.outgoing.folder(name.lower() if name else None, _seen_until(call))
    if call.request.query.get("$filter"):
        holds = _condition(call.request.query["$filter"])
        mails = [mail for mail in mails if holds(mail)]
    top, skip = _number(call, "$top", _DEFAULT_TOP, 1), _number(call, "$skip", 0, 0)
    body: dict[str, Any] = {"@odata.context": f"{GRAPH}/v1.0/$metadata#users('{mailbox.user_id}')/messages"}
    if len(mails) > skip + top:
        body["@odata.nextLink"] = str(call.request.url.update_query({"$skip": str(skip + top)}))
    body["value"] = [_selected(call, _entity(call, mail)) for mail in mails[skip : skip + top]]
    return json_response(body)


def _number(call: Call, option: str, default: int, least: int) -> int:
    given = call.request.query.get(option, str(default))
    if not given.isdecimal() or not least <= int(given) <= max(_MAX_TOP, least):
        raise bad(f"Invalid value '{given}' for {option}.")
    return int(given)


def _condition(text: str) -> Callable[[OutgoingMail], bool]:
    """Read a filter: an internet message id, or the id and the value of an extended property."""
    by_id, by_property = _BY_MESSAGE_ID.fullmatch(text), _BY_PROPERTY.fullmatch(text)
    if by_id:
        wanted = by_id[1].replace("''", "'")
        return lambda mail: mail.internet_message_id == wanted
    if by_property:
        name, value = (by_property[group].replace("''", "'") for group in (2, 3))
        return lambda mail: name in mail.properties and mail.properties[name].lower() == value.lower()
    raise RefusalError(400, "ErrorInvalidUrlQueryFilter", "The simulator filters by internetMessageId or a property.")


def _selected(call: Call, entity: dict[str, Any]) -> dict[str, Any]:
    chosen = call.request.query.get("$select")
    if not chosen:
        return entity
    wanted = {name.strip() for name in chosen.split(",")} | {"id", "@odata.etag"}
    return {name: value for name, value in entity.items() if name in wanted}


def _entity(call: Call, mail: OutgoingMail) -> dict[str, Any]:
    """Return the mail as Graph answers it: extended properties and custom headers are not shown unasked."""
    text, html = bodies(mail.raw)
    immutable = 'idtype="immutableid"' in ",".join(call.request.headers.getall("Prefer", [])).lower()
    when = mail.sent or mail.created
    return {
        "@odata.etag": f'W/"{mail.id[-8:]}"',
        "id": mail.immutable_id if immutable else mail.id,
        "createdDateTime": stamp(mail.created),
        "sentDateTime": stamp(when),
        "internetMessageId": mail.internet_message_id,
        "subject": mail.subject,
        "bodyPreview": " ".join(text.split())[:255],
        "parentFolderId": _FOLDERS["drafts" if mail.sent is None else "sentitems"],
        "isDraft": mail.sent is None,
        "body": {"contentType": "html" if html else "text", "content": html or text},
        "from": {"emailAddress": {"name": mail.sender, "address": mail.sender}},
        "toRecipients": [{"emailAddress": {"name": address, "address": address}} for address in mail.recipients],
    }
