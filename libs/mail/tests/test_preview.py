"""What a preview shows of small mails made by hand, and that no bytes break it. What browsers do: tests/browser."""

import base64
import re
import struct
import time
import zlib

import pytest

from mail import DOCUMENT_HEADERS, ENGLISH, Preview, document, preview
from mail.image import raster_type
from mail.sanitise import IMAGES, IMAGES_BYTES

HTML = "Content-Type: text/html; charset=utf-8\n\n"
SECONDS = 5
"""Of the processor. What is bounded here takes at most one; what is not did not end."""


def mail(content: str, *fields: str) -> Preview:
    """Preview a mail with those fields; *content* begins with its own Content-Type."""
    head = "".join(f"{field}\n" for field in fields or ("From: ann@contoso.example",))
    return preview((head + content).encode())


def multipart(kind: str, *parts: str, boundary: str = "cut") -> str:
    """Return a multipart of *parts*, each with its own header."""
    body = "".join(f"--{boundary}\n{part}\n" for part in parts)
    return f"Content-Type: multipart/{kind}; boundary={boundary}\n\n{body}--{boundary}--\n"


def png(width: int, height: int) -> bytes:
    """Return the beginning of a PNG of that size: enough for what looks at it here."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def encoded(data: bytes, *fields: str) -> str:
    """Return a part that carries *data*."""
    head = "".join(f"{field}\n" for field in fields)
    return f"{head}Content-Transfer-Encoding: base64\n\n{base64.b64encode(data).decode()}"


def html_of(markup: str) -> str:
    """Return the fragment that is shown of *markup*."""
    return mail(HTML + markup).html or ""


# Which part is shown


def test_plain_text_is_shown_as_it_is() -> None:
    """A mail without HTML has no fragment, and its page shows the text with everything escaped."""
    shown = mail("\n1 < 2\n  <b>indented</b>")
    assert shown.html is None
    assert shown.text == "1 < 2\n  <b>indented</b>"
    assert "1 &lt; 2\n  &lt;b&gt;indented&lt;/b&gt;" in document(shown)


def test_of_several_alternatives_the_html_is_shown() -> None:
    """The plain text and the calendar beside it are not."""
    shown = mail(multipart("alternative", "\nplain", f"{HTML}rich", "Content-Type: text/calendar\n\nBEGIN:VCALENDAR"))
    assert shown.text == "rich"


def test_of_alternatives_without_html_the_last_text_is_shown() -> None:
    """The best comes last (RFC 2046)."""
    assert mail(multipart("alternative", "\nfirst", "\nlast")).text == "last"


def test_a_text_beside_the_alternatives_is_shown_too() -> None:
    """A footer that a server added stands below the mail, and does not replace it."""
    inner = multipart("alternative", "\nplain", f"{HTML}<p>rich</p>", boundary="inner")
    shown = mail(multipart("mixed", inner, "\nfooter"))
    assert shown.text == "rich\n\nfooter"


def test_html_inside_related_inside_alternative_is_shown() -> None:
    """The usual structure of a mail with images."""
    related = multipart("related", f"{HTML}rich", boundary="inner")
    assert mail(multipart("alternative", "\nplain", related)).text == "rich"


def test_an_attached_mail_is_named_and_not_shown() -> None:
    """Its text is not the text of this mail."""
    shown = mail(multipart("mixed", "\nsee below", f"Content-Type: message/rfc822\n\nSubject: x\n{HTML}inner"))
    assert shown.text == "see below"
    assert [file.name for file in shown.attachments] == ["attached mail"]


def test_what_is_no_mail_is_an_empty_preview() -> None:
    """Noise has a page, too."""
    shown = preview(b"%PDF-1.7\nSubject: x\n\n<script>")
    assert (shown.text, shown.html, shown.from_address) == ("", None, None)
    assert "(no subject)" in document(shown)


# Header


@pytest.mark.parametrize(
    ("name", "is_deceptive"),
    [
        ('"Ann"', False),
        ('"ann@contoso.example"', False),
        ('"Ann (contoso.example)"', False),
        ('"Contoso Ltd."', False),
        ('"boss@fabrikam.example"', True),
        ('"Boss <boss@fabrikam.example>"', True),
        ('"fabrikam.example support"', True),
        ("=?utf-8?q?bo=E2=80=8Bss=40fabri=E2=80=8Bkam.example?=", True),
    ],
)
def test_a_name_that_poses_as_an_address_is_found(name: str, is_deceptive: bool) -> None:
    """The real address is shown beside any name, and the page says when they disagree."""
    shown = mail("\nx", f"From: {name} <ann@contoso.example>")
    assert shown.from_address == "ann@contoso.example"
    assert shown.from_is_deceptive is is_deceptive
    assert "&lt;ann@contoso.example&gt;" in document(shown)
    assert ("poses as another" in document(shown)) is is_deceptive


def test_what_reorders_or_hides_text_is_taken_out() -> None:
    """Overrides, isolates, zero-width characters; a joiner of Persian stays."""
    shown = mail(
        multipart(
            "mixed",
            "\n\u202eevil\u202c\u200b \u0645\u06cc\u200c\u062e",
            'Content-Disposition: attachment; filename="a\u202efdp.exe"\n\nx',
        ),
        'From: "\u202eBob\u200b" <bob@contoso.example>',
        "Subject: \u2066in\u200bvoice\u2069",
    )
    assert shown.from_name == "Bob"
    assert shown.subject == "invoice"
    assert shown.text == "evil \u0645\u06cc\u200c\u062e"
    assert shown.attachments[0].name == "afdp.exe"
    assert shown.removed["invisible-characters"] == 3


def test_attachments_have_no_paths() -> None:
    """A name is a name."""
    part = 'Content-Disposition: attachment; filename="../../etc/<b>pass:wd"\n\nx'
    assert [file.name for file in mail(multipart("mixed", part)).attachments] == ["_.._etc_b_pass_wd"]


# HTML


@pytest.mark.parametrize(
    ("markup", "shown"),
    [
        ("<b>bold</b> not", '<span style="font-weight:bold">bold</span>'),
        ('<font color="#FF0000" size=5>x</font>', '<span style="color:#ff0000;font-size:x-large">x</span>'),
        (
            '<p style="COLOR: Red; position: fixed; background: #fff">x',
            '<p style="color:red;background-color:#fff">x</p>',
        ),
        ('<p style="padding:9999px;font-size:900px;color:transparent;margin:-9px">x', "<p>x</p>"),
        (
            '<p style="color:red;background:url(https://x.example)" onclick=x id=a class=target name=b>x',
            '<p style="color:red">x</p>',
        ),
        ("<table><tr><td width=50% colspan=99>x", '<td width="50%" colspan="50">x</td>'),
        ("<form action=x><input value=y><button>Sign in</button></form>", "Sign in"),
        ('<a href="https://x.example/"><img src="https://x.example/a.png" alt="A &amp; B"></a>', ">A &amp; B</span>"),
    ],
)
def test_harmless_looks_stay(markup: str, shown: str) -> None:
    """The mail is to be recognised; what could load, cover or hide does not stay."""
    assert shown in html_of(markup)


@pytest.mark.parametrize(
    "style", ["display:none", "DISPLAY : none", "visibility:hidden", "font-size:0", "font-size: 0px", "mso-hide:all"]
)
def test_what_a_mail_program_hides_is_not_shown(style: str) -> None:
    """It is counted instead."""
    shown = mail(f'{HTML}<div style="{style}">un<p>se</p>en<img src=x></div>seen')
    assert shown.text == "seen"
    assert shown.removed == {"hidden-elements": 1}


def test_what_was_removed_is_counted() -> None:
    """The page says so."""
    shown = mail(
        f"{HTML}<script>x</script><form><input></form><img src=https://x.example/a onerror=x><iframe></iframe>"
    )
    assert shown.removed == {"event-handlers": 1, "forms": 2, "frames": 1, "remote-images": 1, "scripts": 1}
    assert "Not shown: 1 event handler, 2 form elements, 1 embedded page, 1 remote image, 1 script." in document(shown)


# Links


@pytest.mark.parametrize(
    ("text", "href", "target", "warnings"),
    [
        ("here", "https://phish.example/a", "https://phish.example/a", ()),
        ("https://contoso.example", "https://contoso.example/a", "https://contoso.example/a", ()),
        ("www.contoso.example", "https://login.contoso.example/", "https://login.contoso.example/", ()),
        ("https://contoso.example", "https://phish.example", "https://phish.example", ("other-host",)),
        ("contoso.example/login", "//phish.example", "http://phish.example", ("other-host",)),
        ("Contoso\u200b.example", "https://phish.example", "https://phish.example", ("other-host",)),
        ("invoice.pdf", "https://phish.example", "https://phish.example", ()),
        ("x", "https://contoso.example@phish.example", "https://contoso.example@phish.example", ("credentials",)),
        ("x", "https:\\\\phish.example\\a", "https://phish.example/a", ()),
        ("x", "https://ph\tish.exa\nmple", "https://phish.example", ()),
        ("x", "https://c\u043entoso.example", "https://xn--cntoso-wqf.example", ("mixed-scripts",)),
        ("x", "https://xn--cntoso-wqf.example", "https://xn--cntoso-wqf.example", ("mixed-scripts",)),
        ("x", "https://\u0441\u043e\u0440\u0435.example", "https://xn--e1argc.example", ("lookalike",)),
        ("x", "https://\u043c\u0438\u0440.example", "https://xn--h1ahn.example", ()),
        ("x", "https://m\u00fcnchen.example", "https://xn--mnchen-3ya.example", ()),
        ("x", "https://\u6771\u4eacweb.example", "https://xn--web-dm9di64i.example", ()),
        ("x", "https://%70hish.example", "https://phish.example", ()),
        ("x", "http://0x7f.1/", "http://0x7f.1/", ("address",)),
        ("x", "http://[::1]:80/", "http://[::1]:80/", ("address",)),
        ("x", "java\tscript:alert(1)", "javascript:alert(1)", ("no-website",)),
        ("x", "search-ms:query=x", "search-ms:query=x", ("no-website",)),
        ("x", "mailto:ann@contoso.example", "mailto:ann@contoso.example", ()),
        ("help@contoso.example", "mailto:a@phish.example", "mailto:a@phish.example", ("other-host",)),
        ("x", "#top", "#top", ()),
    ],
)
def test_a_link_says_where_it_leads(text: str, href: str, target: str, warnings: tuple[str, ...]) -> None:
    """The target is as DNS knows it, and what is odd about it is named."""
    shown = mail(f'{HTML}<a href="{href}">{text}</a>')
    assert [(link.target, link.warnings) for link in shown.links] == [(target, warnings)]
    assert f"[{target}]" in shown.text or shown.links[0].text == target
    assert "<a" not in (shown.html or "")


def test_links_of_plain_text_are_links() -> None:
    """The page shows the real host behind one that poses."""
    shown = mail("\nsee https://c\u043entoso.example/x.")
    assert [link.target for link in shown.links] == ["https://xn--cntoso-wqf.example/x"]
    assert "[https://xn--cntoso-wqf.example/x]" in document(shown)


# Images


def with_image(data: bytes, markup: str = '<img src="cid:a@b" alt=logo>') -> Preview:
    """Preview a mail that shows *data* inside its text."""
    image = encoded(data, "Content-Type: image/png; name=logo.png", "Content-ID: <A@b>", "Content-Disposition: inline")
    return mail(multipart("related", HTML + markup, image))


def test_an_image_of_the_mail_is_shown_and_not_listed() -> None:
    """It travels inside the page."""
    shown = with_image(png(9, 9))
    assert f'<img src="data:image/png;base64,{base64.b64encode(png(9, 9)).decode()}" alt="logo">' in (shown.html or "")
    assert shown.attachments == ()


@pytest.mark.parametrize(
    "data", [b"<svg onload=x>", b"\x89PNG", b"GIF89a", b"", png(100_000, 100_000), b"\xff\xd8\xff"]
)
def test_what_is_no_raster_image_is_listed_and_not_shown(data: bytes) -> None:
    """The type that the mail claims is not asked; a million pixels by a million are no image."""
    shown = with_image(data)
    assert "<img" not in (shown.html or "")
    assert shown.removed == {"other-images": 1}
    assert [file.name for file in shown.attachments] == ["logo.png"]


@pytest.mark.slow
def test_images_are_bounded_however_often_they_are_shown() -> None:
    """One image can be named a thousand times."""
    shown = with_image(png(9, 9) + bytes(1_000_000), '<img src="cid:a@b">' * 1_000)
    assert (shown.html or "").count("<img") == IMAGES_BYTES // 1_000_033
    shown = with_image(png(9, 9), '<img src="cid:a@b">' * 1_000)
    assert (shown.html or "").count("<img") == IMAGES


def test_an_image_inside_the_markup_is_shown_when_it_is_one() -> None:
    """As data: URL, short or long."""
    for size in (0, 1_000):
        url = f"data:image/png;base64,{base64.b64encode(png(9, 9) + bytes(size)).decode()}"
        assert f'<img src="{url}"' in html_of(f'<img src="{url}">')
    assert "<img" not in html_of('<img src="data:image/svg+xml;base64,PHN2Zz4=">')


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"GIF89a\x09\0\x09\0", "image/gif"),
        (png(9, 9), "image/png"),
        (b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + b"\x09\0\0\x09\0\0", "image/webp"),
        (b"RIFF\0\0\0\0WEBPVP8L" + bytes(4) + b"\x2f\x09\0\0\0", "image/webp"),
        (b"RIFF\0\0\0\0WEBPVP8 " + bytes(10) + b"\x09\0\x09\0", "image/webp"),
        (b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x0b\x08\0\x09\0\x09", "image/jpeg"),
        (b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x0b\x08\xff\xff\xff\xff", None),
        (b"<svg/>", None),
        (b"BM" + bytes(60), None),
    ],
)
def test_images_are_known_by_their_content(data: bytes, kind: str | None) -> None:
    """Formats that are pictures and nothing else, with a bounded number of pixels."""
    assert raster_type(data) == kind


# Bounds


def test_a_preview_is_explained_in_the_words_it_is_given() -> None:
    """In its header, its notes and its links, and as text: a translator cannot bring markup in."""
    words = {key: f"<{key}> " + "".join(re.findall(r"{\w+}", text)) for key, text in ENGLISH.items()}
    raw = (
        b"From: 'ann@contoso.example' <mallory@fabrikam.example>\nContent-Type: text/html\n\n"
        b"<a href='https://user@xn--80ak6aa92e.example'>https://contoso.example</a><img src='https://fabrikam.example'>"
    )
    page = document(preview(raw, words), words)

    wanted = "language from no_subject deceptive removed links image link_other-host link_credentials link_lookalike"
    for key in (*wanted.split(), "removed_remote-images"):
        assert f"&lt;{key}&gt;" in page
    for text in ENGLISH.values():
        assert len(text) < 8 or text not in page


@pytest.mark.slow
@pytest.mark.parametrize(
    "field",
    ["To: <{}@example.com>", "Authentication-Results: {}", 'Authentication-Results: "{}', "From: a({}@example.com"],
)
@pytest.mark.parametrize("piece", ["(\\", '\\"', "\\(", "((", '"\\"\\'])
def test_a_hostile_header_takes_bounded_time(field: str, piece: str) -> None:
    """What begins again and again and never ends is read once."""
    begin = time.thread_time()
    shown = mail("\nhello", field.format(piece * (60_000 // len(piece))), "Subject: x")
    assert time.thread_time() - begin < SECONDS
    assert (shown.subject, shown.text) == ("x", "hello")


@pytest.mark.slow
def test_many_texts_share_the_bounds_of_one() -> None:
    """A mail cannot have more by having more parts."""
    begin = time.thread_time()
    shown = mail(multipart("mixed", *[HTML + "&" * 200_000] * 50))
    assert time.thread_time() - begin < SECONDS
    assert shown.is_cut
    assert len(shown.html or "") < 1_500_000


def test_a_server_is_told_what_to_send() -> None:
    """The page asks for what it can; the sandbox and the frame's ancestors are the server's to ask."""
    policy = DOCUMENT_HEADERS["Content-Security-Policy"]
    for part in ("default-src 'none'", "img-src data:", "form-action 'none'", "frame-ancestors 'self'", "sandbox"):
        assert part in policy.split("; ")
    assert DOCUMENT_HEADERS["Cache-Control"] == "no-store"
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\';' in document(mail("\nx"))
