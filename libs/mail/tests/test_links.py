"""Every link of a mail is found, and the wrappers around it undone."""

from collections.abc import Callable
from urllib.parse import quote

import pytest

from mail import normal_url, parse
from mail.link_wrappers import _REDIRECTORS, _WRAPPERS

Compose = Callable[..., bytes]


def test_urls_come_from_texts_links_images_and_forms(multipart: Compose) -> None:
    """Everything that a click or a mere look at the mail would open, each once, in the order of the mail."""
    html = (
        '<a href="http://A.example/?a=1&amp;b=2">x</a><a href="http://a.example/?a=1&amp;b=2">again</a>'
        "<img src=//img.example/p.gif><form action='https://form.example/login'><button formaction=http://b.example>"
        '<area href="https:\\\\back.example\\x"><a href="ht\ntps://split.example">x</a><a href="https:single.example">'
        '<meta http-equiv="Refresh" content="0; URL=http://refresh.example/">'
        '<a href="mailto:a@example.com"><a href="javascript:x"><a href="#top"><a href="cid:1"><a href="/relative">'
        "<p>see www.shown.example, or http://text.example/(x)."
    )
    facts = parse(
        multipart(
            "Content-Type: text/plain\n\nFirst <https://plain.example/path>, then http://plain.example:8080/x!",
            f"Content-Type: text/html\n\n{html}",
        )
    )
    assert facts.urls == (
        "https://plain.example/path",
        "http://plain.example:8080/x",
        "http://a.example/?a=1&b=2",
        "http://img.example/p.gif",
        "https://form.example/login",
        "http://b.example",
        "https://back.example/x",
        "https://split.example",
        "https://single.example",
        "http://refresh.example/",
        "http://www.shown.example",
        "http://text.example/(x)",
    )


def test_links_that_only_outlook_shows_are_found(mail: Compose) -> None:
    """Outlook renders conditional comments, so a link in one is a link."""
    html = (
        '<!--[if mso]><a href="http://outlook.example">x</a><![endif]-->'
        '<!--[if !mso]><!--><a href="http://others.example">x</a><!--<![endif]--><a href="http://all.example">x</a>'
        '<!-- <a href="http://nobody.example"> -->'
    )
    facts = parse(mail("Content-Type: text/html", body=html))
    assert facts.urls == ("http://outlook.example", "http://others.example", "http://all.example")


@pytest.mark.parametrize(
    ("wrapped", "target"),
    [
        (
            "https://eur01.safelinks.protection.outlook.com/?url=https%3A%2F%2Fevil.example%2Fa%3Fb%3D1&data=05%7Cbob",
            "https://evil.example/a?b=1",
        ),
        ("https://usg01.safelinks.protection.office365.us/?url=https%3A%2F%2Fevil.example%2F", "https://evil.example/"),
        (
            "https://nam02.safelinks.protection.outlook.com/?url="
            + quote("https://eur01.safelinks.protection.outlook.com/?url=https%3A%2F%2Fevil.example%2Fa&data=1"),
            "https://evil.example/a",
        ),
        ("https://urldefense.proofpoint.com/v1/url?u=http%3A%2F%2Fevil.example%2Fa&k=x", "http://evil.example/a"),
        (
            "https://urldefense.proofpoint.com/v2/url?u=https-3A__evil.example_a-3Fb-3D1&d=x",
            "https://evil.example/a?b=1",
        ),
        ("https://urldefense.com/v3/__https://evil.example/a__;!!x", "https://evil.example/a"),
        ("https://urldefense.com/v3/__https:/evil.example/a*b**A__;P8Ok!!x!y$", "https://evil.example/a?b\u00e4"),
        ("https://linkprotect.cudasvc.com/url?a=https%3a%2f%2fevil.example%2fa&c=E,1", "https://evil.example/a"),
        ("https://secure-web.cisco.com/1a-b/https%3A%2F%2Fevil.example%2Fa", "https://evil.example/a"),
        ("https://clicktime.symantec.com/a/1/x?d=y&u=https%3A%2F%2Fevil.example%2Fa", "https://evil.example/a"),
        (
            "https://eu.protection.sophos.com/?d=evil.example&u=aHR0cHM6Ly9ldmlsLmV4YW1wbGUvYQ==",
            "https://evil.example/a",
        ),
        ("https://www.google.com/url?sa=t&q=https://evil.example/a&x=1", "https://evil.example/a"),
        ("https://google.co.uk/url?url=https%3A%2F%2Fevil.example%2Fa", "https://evil.example/a"),
        ("https://www.google.com/amp/s/evil.example/a", "https://evil.example/a"),
        ("https://www.bing.com/ck/a?!&u=a1aHR0cHM6Ly9ldmlsLmV4YW1wbGUvYQ&ntb=1", "https://evil.example/a"),
        ("https://www.google.com/url?q=cats&url=https://evil.example/a", "https://evil.example/a"),
        # What only looks like a wrapper, or does not tell.
        ("https://www.google.com/search?q=https://evil.example/a", None),
        ("https://safelinks.protection.outlook.com.evil.example/?url=https://good.example/", None),
        ("https://url.uk.m.mimecastprotect.com/s/AbC123?domain=evil.example", None),
        ("https://eur01.safelinks.protection.outlook.com/?url=evil", None),
        ("https://urldefense.com/v3/__", None),
        ("https://protection.sophos.com/?u=%FF", None),
    ],
)
def test_wrappers_are_undone(mail: Compose, wrapped: str, target: str | None) -> None:
    """What a service rewrote on delivery is the recipient's; the indicator is where it leads."""
    assert normal_url(wrapped) == (target or wrapped)
    assert parse(mail(body=f"Look: {wrapped}\n")).urls == (target or wrapped,)


@pytest.mark.parametrize("host", [*_WRAPPERS, *_REDIRECTORS, "www.google.com"])
def test_a_wrapped_link_of_anything_raises_nothing(mail: Compose, host: str) -> None:
    """Else one link would keep a mail from being reported."""
    odd = (
        "[",
        "]",
        "//",
        "//[x",
        "%",
        "%ff",
        "__",
        "@",
        ":",
        "?",
        "#",
        "*",
        "**",
        "**A",
        "=",
        "&",
        ";",
        "\\",
        "https://[",
    )
    rests = [
        f"/{path}{one}{other}"
        for path in ("", "v2/", "v3/__", "url?q=", "?url=", "?u=")
        for one in odd
        for other in odd
    ]
    body = "\n".join(f"https://{host}{rest}" for rest in rests)
    assert parse(mail(body=body)).is_mail
    assert all(normal_url(f"https://{host}{rest}") for rest in rests)


def test_no_link_is_wrapped_without_end() -> None:
    """Each layer is undone by itself, up to a bound; the rest stays as it is."""
    link = "https://evil.example/a"
    for _ in range(30):
        link = f"https://www.google.com/url?q={quote(link, safe='')}"[:8_000]
    assert "google.com" in (normal_url(link) or "")


def test_a_quoted_greater_than_does_not_hide_a_link(mail: Compose) -> None:
    """HTML is read as browsers read it, not as text."""
    facts = parse(mail("Content-Type: text/html", body='<img alt=">" src="http://hidden.example/x">'))
    assert facts.urls == ("http://hidden.example/x",)
