"""Render the users' pages and the links to them, and load the templates of pages and digests."""

import secrets
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from quarantine.links import LinkAction, Signer
from quarantine.store import QuarantinedMessage
from quarantine.translations import Texts


def make_templates() -> Environment:
    """Return the environment of the templates. HTML templates escape their variables; text templates do not."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(enabled_extensions=("html",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def link_path(signer: Signer, action: LinkAction, message: QuarantinedMessage, expires_at: datetime) -> str:
    """Return the path of the page where the recipient of *message* can perform *action*."""
    token = signer.sign_link(
        action,
        tenant_id=message.tenant_id,
        message_id=message.message_id,
        recipient=message.recipient,
        expires_at=expires_at,
    )
    return f"/q/{token}"


def render_page(
    templates: Environment,
    template: str,
    texts: Texts,
    *,
    status: int = HTTPStatus.OK,
    framed: bool = False,
    **variables: Any,
) -> Response:
    """Return a page. Only a *framed* page may be shown in a frame of our own pages."""
    nonce = secrets.token_urlsafe(16)
    text = templates.get_template(template).render(texts=texts, nonce=nonce, **variables)
    headers = {**page_headers(nonce, framed=framed), "Content-Language": texts.code}
    return HTMLResponse(text, status, headers=headers)


def page_headers(nonce: str = "", *, framed: bool = False) -> dict[str, str]:
    """Return headers that let a page load only its own style and frame, and forbid caching and foreign frames."""
    policy = (
        "default-src 'none'",
        f"style-src 'nonce-{nonce}'" if nonce else "style-src 'none'",
        "frame-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'self'" if framed else "frame-ancestors 'none'",
    )
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "X-Robots-Tag": "noindex, nofollow",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    }
