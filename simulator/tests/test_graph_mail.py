"""Mail that an application writes, sends and finds again in a mailbox."""

import base64
import hashlib
import io
from email.message import EmailMessage
from typing import Any

import aiohttp
import pytest

from simulator import DEFAULT_APP
from simulator.state import DEFAULT_TENANT
from simulator.tokens import GRAPH

SENDER = "backstop@contoso.example"
USER = f"/v1.0/users/{SENDER}"
SENT, DRAFTS = f"{USER}/mailFolders/sentitems/messages", f"{USER}/mailFolders/drafts/messages"
KEY = "String {00020329-0000-0000-c000-000000000046} Name notice"
MESSAGE_ID = "<notice-7@contoso.example>"


def written(**changes: Any) -> dict[str, Any]:
    """Write a message in JSON."""
    return {
        "subject": "Your quarantine",
        "body": {"contentType": "html", "content": '<p>See <a href="https://backstop.example/q/1">all</a></p>'},
        "toRecipients": [{"emailAddress": {"address": "Anna@contoso.example", "name": "Anna"}}],
        **changes,
    }


def mime(**headers: str) -> bytes:
    """Write a mail with a text and an HTML form."""
    mail = EmailMessage()
    for name, value in {"To": "anna@contoso.example", "Subject": "Your quarantine", **headers}.items():
        mail[name] = value
    mail.set_content("Plain form: https://backstop.example/q/1")
    mail.add_alternative('<p>Rich <a href="https://backstop.example/q/1">form</a></p>', subtype="html")
    return mail.as_bytes()


class Mailer:
    """Calls Graph as an application does."""

    def __init__(self, graph: Any, control: Any) -> None:
        self._graph = graph
        self._control = control

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Send JSON."""
        headers = {"Authorization": f"Bearer {self._graph.bearer}", **options.pop("headers", {})}
        return await self._graph.call(method, path, body, headers=headers, **options)

    async def send_mime(self, path: str, content: bytes) -> int:
        """Send bytes as text/plain and return the status."""
        headers = {"Authorization": f"Bearer {self._graph.bearer}", "Content-Type": "text/plain"}
        async with self._graph.session.post(
            self._graph.url + path, data=io.BytesIO(content), headers=headers
        ) as response:
            self.answer = await response.json() if response.content_type == "application/json" else None
            return int(response.status)

    async def found(self, path: str, text: str) -> list[Any]:
        """List what a filter finds."""
        answer = await self.ask("GET", path, params={"$filter": text})
        assert answer.status == 200, answer.body
        return list(answer.body["value"])

    async def sent(self) -> list[Any]:
        """Read what the ledger says was sent, with the mails themselves."""
        entries = (await self._control.ledger())["mails"]
        path = f"/tenants/{DEFAULT_TENANT}/mails"
        return [{**entry, **(await self._control.ask("GET", f"{path}/{entry['number']}"))} for entry in entries]


@pytest.fixture
def mailer(graph: Any, control: Any) -> Mailer:
    """Provide Graph's mail."""
    return Mailer(graph, control)


async def test_a_mail_in_json_is_sent(mailer: Mailer, control: Any) -> None:
    """202 and nothing else; the ledger has the mail, its text and its links."""
    headers = [{"name": "x-backstop", "value": "digest"}]
    message = written(internetMessageHeaders=headers, bccRecipients=[{"emailAddress": {"address": "b@c.example"}}])

    answer = await mailer.ask("POST", f"{USER}/sendMail", {"message": message})

    assert (answer.status, answer.body) == (202, None)
    (mail,) = await mailer.sent()
    assert (mail["sender"], mail["recipients"]) == (SENDER, ["anna@contoso.example", "b@c.example"])
    assert (mail["subject"], mail["form"], mail["app"]) == ("Your quarantine", "sendMail", DEFAULT_APP)
    assert mail["links"] == [{"url": "https://backstop.example/q/1", "text": "all"}]
    assert ("See" in mail["html"], mail["text"]) == (True, "")
    raw = base64.b64decode(mail["eml_base64"])
    assert b"x-backstop: digest" in raw
    assert b"b@c.example" not in raw
    assert hashlib.sha256(raw).hexdigest() == mail["sha256"]
    assert (await control.ledger())["counts"]["mails"] == 1


async def test_a_mail_in_mime_is_sent_byte_for_byte(mailer: Mailer) -> None:
    """Both forms of the text arrive."""
    date = "Mon, 02 Nov 2026 09:59:00 +0000"
    raw = mime(**{"From": f"Backstop <{SENDER}>", "Message-ID": MESSAGE_ID, "Date": date})

    assert await mailer.send_mime(f"{USER}/sendMail", base64.encodebytes(raw)) == 202

    (mail,) = await mailer.sent()
    assert base64.b64decode(mail["eml_base64"]) == raw
    assert (mail["internet_message_id"], mail["recipients"]) == (MESSAGE_ID, ["anna@contoso.example"])
    assert mail["text"].startswith("Plain form")
    assert mail["html"].startswith("<p>Rich")


async def test_a_mail_in_mime_gets_what_it_lacks(mailer: Mailer) -> None:
    """The sender, a message id and a date are added, Bcc is taken out."""
    assert await mailer.send_mime(f"{USER}/sendMail", base64.b64encode(mime(Bcc="ben@contoso.example"))) == 202

    (mail,) = await mailer.sent()
    raw = base64.b64decode(mail["eml_base64"])
    assert mail["recipients"] == ["anna@contoso.example", "ben@contoso.example"]
    assert b"ben@" not in raw
    assert f"From: {SENDER}".encode() in raw
    assert mail["internet_message_id"].encode() in raw


async def test_a_sent_mail_is_found_by_its_message_id(mailer: Mailer) -> None:
    """In Sent Items, unless the client did not want it saved."""
    await mailer.ask("POST", f"{USER}/sendMail", {"message": written(internetMessageId=MESSAGE_ID)})
    unsaved = {"message": written(internetMessageId="<other@contoso.example>"), "saveToSentItems": "false"}
    await mailer.ask("POST", f"{USER}/sendMail", unsaved)

    (found,) = await mailer.found(SENT, f"internetMessageId eq '{MESSAGE_ID}'")
    assert (found["isDraft"], found["subject"]) == (False, "Your quarantine")
    assert await mailer.found(SENT, "internetMessageId eq '<other@contoso.example>'") == []
    assert await mailer.found(DRAFTS, f"internetMessageId eq '{MESSAGE_ID}'") == []
    assert len(await mailer.sent()) == 2


async def test_a_draft_is_sent_once(mailer: Mailer, control: Any) -> None:
    """It leaves Drafts for Sent Items under another id, with the same message id and properties."""
    properties = [{"id": KEY, "value": "7"}]
    draft = written(internetMessageId=MESSAGE_ID, singleValueExtendedProperties=properties)
    made = await mailer.ask("POST", f"{USER}/messages", draft)
    assert (made.status, made.body["isDraft"], made.body["internetMessageId"]) == (201, True, MESSAGE_ID)
    assert await mailer.sent() == []
    by_property = f"singleValueExtendedProperties/Any(ep: ep/id eq '{KEY}' and ep/value eq '7')"
    assert [mail["id"] for mail in await mailer.found(DRAFTS, by_property)] == [made.body["id"]]

    answer = await mailer.ask("POST", f"{USER}/messages/{made.body['id']}/send")

    assert (answer.status, answer.body) == (202, None)
    for text in (by_property, f"internetMessageId eq '{MESSAGE_ID}'"):
        assert await mailer.found(DRAFTS, text) == []
        (found,) = await mailer.found(SENT, text)
        assert found["id"] != made.body["id"]
        assert len(await mailer.found(f"{USER}/messages", text)) == 1
    again = await mailer.ask("POST", f"{USER}/messages/{made.body['id']}/send")
    assert (again.status, again.code) == (404, "ErrorItemNotFound")
    counts = (await control.ledger())["counts"]
    assert (counts["mails"], counts["mailed_items"]) == (1, 1)


async def test_an_immutable_id_stays(mailer: Mailer) -> None:
    """For who asks for it; a mail that was sent can't be sent again."""
    prefer = {"Prefer": 'IdType="ImmutableId"'}
    made = await mailer.ask("POST", f"{USER}/messages", written(), headers=prefer)
    path = f"{USER}/messages/{made.body['id']}"
    await mailer.ask("POST", f"{path}/send")

    found = await mailer.ask("GET", path, headers=prefer)

    assert (found.body["id"], found.body["isDraft"]) == (made.body["id"], False)
    again = await mailer.ask("POST", f"{path}/send")
    assert (again.status, again.code) == (400, "ErrorInvalidOperation")
    assert len(await mailer.sent()) == 1


async def test_a_draft_in_mime_gets_its_property_later(mailer: Mailer) -> None:
    """MIME can't carry an extended property."""
    assert await mailer.send_mime(f"{USER}/messages", base64.b64encode(mime())) == 201
    path = f"{USER}/messages/{mailer.answer['id']}"

    changed = await mailer.ask("PATCH", path, {"singleValueExtendedProperties": [{"id": KEY, "value": "8"}]})

    assert changed.status == 200
    text = f"singleValueExtendedProperties/any(p:p/id eq '{KEY}' and p/value eq '8')"
    assert [mail["subject"] for mail in await mailer.found(DRAFTS, text)] == ["Your quarantine"]
    assert (await mailer.ask("PATCH", path, {"subject": "Other"})).status == 400
    assert (await mailer.ask("DELETE", path)).status == 204
    assert await mailer.found(DRAFTS, text) == []


async def test_message_ids_may_not_be_kept(mailer: Mailer, control: Any) -> None:
    """Then only the extended property finds the mail again."""
    await control.settings(message_ids_kept=False)
    properties = [{"id": KEY, "value": "7"}]
    draft = written(internetMessageId=MESSAGE_ID, singleValueExtendedProperties=properties)
    made = await mailer.ask("POST", f"{USER}/messages", draft)
    await mailer.ask("POST", f"{USER}/messages/{made.body['id']}/send")

    assert await mailer.found(SENT, f"internetMessageId eq '{MESSAGE_ID}'") == []
    text = f"singleValueExtendedProperties/any(ep: ep/id eq '{KEY}' and ep/value eq '7')"
    assert len(await mailer.found(SENT, text)) == 1


async def test_a_sent_mail_may_be_seen_late(mailer: Mailer, control: Any) -> None:
    """It has left Drafts already."""
    await control.settings(sent_items_lag_seconds=60)
    made = await mailer.ask("POST", f"{USER}/messages", written())
    await mailer.ask("POST", f"{USER}/messages/{made.body['id']}/send")

    assert (await mailer.ask("GET", f"{USER}/messages")).body["value"] == []
    await control.advance(61)
    assert len((await mailer.ask("GET", f"{USER}/messages")).body["value"]) == 1


async def test_a_lost_answer_leaves_the_mail_sent(mailer: Mailer, control: Any) -> None:
    """What a client can look up, and the ledger knows."""
    made = await mailer.ask("POST", f"{USER}/messages", written(internetMessageId=MESSAGE_ID))
    await control.fault("graph.messages.send", "drop_after_effect")

    with pytest.raises(aiohttp.ClientError):
        await mailer.ask("POST", f"{USER}/messages/{made.body['id']}/send")

    assert len(await mailer.found(SENT, f"internetMessageId eq '{MESSAGE_ID}'")) == 1
    (mail,) = await mailer.sent()
    assert (mail["form"], mail["answer"]["outcome"]) == ("draft", "dropped")


async def test_sending_is_throttled_on_order(mailer: Mailer, control: Any) -> None:
    """Nothing is sent then."""
    await control.fault("graph.sendMail", "throttle", retry_after=9)

    answer = await mailer.ask("POST", f"{USER}/sendMail", {"message": written()})

    assert (answer.status, answer.headers["Retry-After"]) == (429, "9")
    assert await mailer.sent() == []


async def test_a_sent_mail_carries_its_attachments(mailer: Mailer) -> None:
    """Files, also those that the HTML shows."""
    attachment = {
        "@odata.type": "#microsoft.graph.fileAttachment",
        "name": "logo.png",
        "contentType": "image/png",
        "contentBytes": base64.b64encode(b"\x89PNG").decode(),
        "contentId": "logo",
    }
    assert (await mailer.ask("POST", f"{USER}/sendMail", {"message": written(attachments=[attachment])})).status == 202

    (mail,) = await mailer.sent()
    raw = base64.b64decode(mail["eml_base64"])
    assert b"Content-ID: <logo>" in raw
    assert base64.b64encode(b"\x89PNG") in raw
    assert "See" in mail["html"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"toRecipients": []}, "ErrorInvalidRecipients"),
        ({"toRecipients": [{"emailAddress": {"address": "anna"}}]}, "ErrorInvalidRecipients"),
        ({"toRecipients": ["anna@contoso.example"]}, "RequestBodyRead"),
        ({"internetMessageHeaders": [{"name": "List-Unsubscribe", "value": "x"}]}, "InvalidInternetMessageHeader"),
        (
            {"internetMessageHeaders": [{"name": f"x-{n}", "value": "x"} for n in range(6)]},
            "InvalidInternetMessageHeaderCollection",
        ),
        ({"internetMessageHeaders": [{"name": "x-a", "value": "x\r\nBcc: y@z.example"}]}, "RequestBodyRead"),
        ({"attachments": [{"@odata.type": "#microsoft.graph.itemAttachment"}]}, "RequestBodyRead"),
        ({"singleValueExtendedProperties": [{"id": KEY}]}, "RequestBodyRead"),
        ({"from": {"emailAddress": {"address": "boss@contoso.example"}}}, "ErrorSendAsDenied"),
    ],
)
async def test_what_graph_refuses_is_not_sent(mailer: Mailer, changes: dict[str, Any], code: str) -> None:
    """Each has its own code."""
    answer = await mailer.ask("POST", f"{USER}/sendMail", {"message": written(**changes)})

    assert answer.code == code
    assert answer.status == (403 if code == "ErrorSendAsDenied" else 400)
    assert await mailer.sent() == []


async def test_bad_bodies_are_refused(mailer: Mailer) -> None:
    """No message, no base64, no headers, another sender, too large."""
    assert (await mailer.ask("POST", f"{USER}/sendMail", {})).status == 400
    assert (await mailer.ask("POST", f"{USER}/sendMail", ["message"])).status == 400
    for content, code in (
        (b"***", "ErrorMimeContentInvalidBase64String"),
        (base64.b64encode(b"\r\n\r\nno headers"), "ErrorMimeContentInvalid"),
        (base64.b64encode(mime(From="boss@contoso.example")), "ErrorSendAsDenied"),
        (b"A" * (4 * 1024 * 1024 + 1), "RequestEntityTooLarge"),
    ):
        await mailer.send_mime(f"{USER}/sendMail", content)
        assert mailer.answer["error"]["code"] == code
    assert await mailer.sent() == []


async def test_a_mailbox_is_needed(mailer: Mailer, control: Any) -> None:
    """It is named by address or object id."""
    box = await control.ask("GET", f"/tenants/{DEFAULT_TENANT}/mailboxes/{SENDER}")
    message = {"message": written()}
    assert (await mailer.ask("POST", f"/v1.0/users/{box['user_id']}/sendMail", message)).status == 202
    await control.tenant(any_mailbox=False)
    answer = await mailer.ask("POST", "/v1.0/users/nobody@contoso.example/sendMail", message)
    assert (answer.status, answer.code) == (404, "ErrorInvalidUser")


async def test_each_call_needs_its_permission(mailer: Mailer, control: Any, client: Any, graph: Any) -> None:
    """Mail.Send sends, Mail.ReadWrite writes drafts, either reader reads."""
    made = await mailer.ask("POST", f"{USER}/messages", written())
    calls = {
        "send": ("POST", f"{USER}/messages/{made.body['id']}/send", None),
        "sendMail": ("POST", f"{USER}/sendMail", {"message": {}}),
        "create": ("POST", f"{USER}/messages", written()),
        "read": ("GET", SENT, None),
    }

    async def forbidden(*roles: str) -> set[str]:
        await control.tenant(apps=[{"client_id": DEFAULT_APP, "secrets": ["s"], "graph_roles": roles}])
        granted = await client.token(GRAPH, client_secret="s")  # noqa: S106 - opens nothing but the simulator
        graph.bearer = granted.body["access_token"]
        return {name for name, call in calls.items() if (await mailer.ask(*call)).status == 403}

    assert await forbidden("ThreatSubmission.ReadWrite.All") == set(calls)
    assert await forbidden("Mail.Read") == {"send", "sendMail", "create"}
    assert await forbidden("Mail.ReadWrite") == {"send", "sendMail"}
    assert await forbidden("Mail.Send") == {"create", "read"}


async def test_mails_are_listed_by_page(mailer: Mailer) -> None:
    """Latest first; the next link has the filter and the number to skip."""
    for number in range(3):
        await mailer.ask("POST", f"{USER}/sendMail", {"message": written(subject=f"Mail {number}")})

    first = await mailer.ask("GET", SENT, params={"$top": "2", "$select": "subject"})

    assert [mail["subject"] for mail in first.body["value"]] == ["Mail 2", "Mail 1"]
    assert set(first.body["value"][0]) == {"@odata.etag", "id", "subject"}
    link = first.body["@odata.nextLink"].removeprefix(mailer._graph.url)
    rest = await mailer.ask("GET", link)
    assert [mail["subject"] for mail in rest.body["value"]] == ["Mail 0"]
    assert "@odata.nextLink" not in rest.body


async def test_what_is_not_served_is_refused(mailer: Mailer) -> None:
    """Other filters, options, folders and mails."""
    assert (await mailer.ask("GET", SENT, params={"$filter": "subject eq 'x'"})).code == "ErrorInvalidUrlQueryFilter"
    assert (await mailer.ask("GET", SENT, params={"$search": "x"})).status == 400
    assert (await mailer.ask("GET", SENT, params={"$top": "0"})).status == 400
    assert (await mailer.ask("GET", f"{USER}/mailFolders/inbox/messages")).code == "ErrorFolderNotFound"
    assert (await mailer.ask("GET", f"{USER}/messages/unknown")).code == "ErrorItemNotFound"
    other = await mailer._control.call("GET", f"/simulator/tenants/{DEFAULT_TENANT}/mails/1")
    assert other.status == 404
