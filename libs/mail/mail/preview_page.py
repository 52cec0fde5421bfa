"""An HTML page that shows a preview, and the HTTP header fields to serve it with."""

from collections.abc import Mapping
from html import escape
from types import MappingProxyType

from mail.preview import Preview
from mail.preview_words import ENGLISH
from mail.sanitise import Material, plain_fragment

CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The policy in the page itself. Its own styles are inline, like those of messages."""
DOCUMENT_HEADERS = MappingProxyType(
    {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": f"{CONTENT_POLICY}; frame-ancestors 'self'; sandbox",
        "X-Content-Type-Options": "nosniff",
        "X-DNS-Prefetch-Control": "off",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
)
"""Header fields to send with `document`. `sandbox` and `frame-ancestors` only work in the header, not in the page."""

_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b1a19;--dim:#605e5c;--line:#d2d0ce;--panel:#f5f5f5;
--alarm:#a4262c;--alarm-page:#fde7e9;--mark:#eef4fb;--mark-ink:#0b4a8f}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;
overflow-wrap:anywhere}
header{padding:16px;border-bottom:1px solid var(--line);background:var(--panel)}
h1{margin:0 0 8px;font-size:19px;line-height:1.3;overflow:hidden}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 12px;margin:0}
dt{color:var(--dim)}
dd{margin:0;min-width:0;overflow:hidden}
ul.files{list-style:none;margin:0;padding:0}
.address{font-family:ui-monospace,monospace;font-size:13px}
.alarm{color:var(--alarm);font-weight:600}
.note{margin:10px 0 0;color:var(--dim);font-size:13px}
main{padding:16px;overflow:auto;contain:paint}
main.paper{color-scheme:light;background:#fff;color:#1b1a19;--dim:#605e5c;--line:#d2d0ce;--alarm:#a4262c;
--alarm-page:#fde7e9;--mark:#eef4fb;--mark-ink:#0b4a8f}
main table{max-width:100%;overflow-wrap:anywhere}
main img{max-width:100%;height:auto}
main pre,.text{white-space:pre-wrap;overflow-wrap:anywhere}
main blockquote{margin:0 0 0 4px;padding-left:10px;border-left:3px solid var(--line)}
main span[style*=padding],main span[style*=border]{display:inline-block;max-width:100%}
.link{text-decoration:underline dotted}
.target,.warning{all:unset;display:inline;font:12px/1.4 ui-monospace,monospace!important;border-radius:3px;
padding:0 3px;overflow-wrap:anywhere;unicode-bidi:isolate;direction:ltr}
.target{background:var(--mark)!important;color:var(--mark-ink)!important}
.warning{background:var(--alarm-page)!important;color:var(--alarm)!important;font-weight:600!important}
.blocked{display:inline-block;max-width:100%;padding:1px 6px;border:1px dashed #8a8886;border-radius:3px;
color:var(--dim);background:var(--page);font-size:12px;line-height:1.5}
main.paper .blocked{background:#fff}
@media (prefers-color-scheme:dark){:root{--page:#1b1a19;--ink:#f3f2f1;--dim:#b3b0ad;--line:#484644;--panel:#252423;
--alarm:#ff99a4;--alarm-page:#4a1a1e;--mark:#1c3350;--mark-ink:#a6ccff}}
"""


def document(preview: Preview, words: Mapping[str, str] = ENGLISH) -> str:
    """
    Return a complete HTML page that shows *preview* in the language of *words*, for light and dark mode and any width.

    Send it with DOCUMENT_HEADERS and show it in `<iframe sandbox src="...">`. `srcdoc` is as safe, but inherits the
    surrounding page's policy: one without `style-src 'unsafe-inline'` leaves the preview unstyled.
    """
    if preview.html is not None:
        # Messages choose colours for a white background, whatever the reader's colour scheme.
        main = f'<main class="paper">{preview.html}</main>'
    else:
        main = f"<main>{plain_fragment(preview.text, Material(words))}</main>"
    return (
        f'<!DOCTYPE html>\n<html lang="{escape(words["language"])}"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
        '<meta name="referrer" content="no-referrer"><meta name="viewport" content="width=device-width">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="format-detection" content="telephone=no,date=no,address=no,email=no,url=no">'
        f"<title>{escape(preview.subject or words['mail'])}</title><style>{_STYLE}</style></head><body>"
        f"<header>{_header(preview, words)}</header>"
        f"{main}</body></html>\n"
    )


def _header(preview: Preview, words: Mapping[str, str]) -> str:
    rows = [("from", _sender(preview, words))]
    if preview.to:
        more = "" if len(preview.to) <= 5 else f" {words['more'].format(count=len(preview.to) - 5)}"
        rows.append(("to", f"{_isolated(', '.join(preview.to[:5]), 'address')}{escape(more)}"))
    if preview.date:
        rows.append(("date", f"{preview.date:%Y-%m-%d %H:%M} UTC"))
    if preview.attachments:
        files = "".join(
            f"<li>{_isolated(file.name)} ({escape(file.content_type)}, {escape(_format_size(file.size, words))})</li>"
            for file in preview.attachments
        )
        rows.append(("files", f'<ul class="files">{files}</ul>'))
    fields = "".join(f"<dt>{escape(words[name])}</dt><dd>{value}</dd>" for name, value in rows)
    subject = _isolated(preview.subject or words["no_subject"])
    return f"<h1>{subject}</h1><dl>{fields}</dl>{_notes(preview, words)}"


def _sender(preview: Preview, words: Mapping[str, str]) -> str:
    name = _isolated(preview.from_name) + " " if preview.from_name else ""
    address = f"<{preview.from_address}>" if preview.from_address else words["no_address"]
    alarm = f' <span class="alarm">{escape(words["deceptive"])}</span>' if preview.from_is_deceptive else ""
    return f"{name}{_isolated(address, 'address')}{alarm}"


def _isolated(text: str, kind: str = "") -> str:
    """Return *text* isolated, so that its writing direction does not reorder the text around it."""
    return f'<bdi class="{kind}">{escape(text)}</bdi>' if kind else f"<bdi>{escape(text)}</bdi>"


def _notes(preview: Preview, words: Mapping[str, str]) -> str:
    notes = []
    removed = [
        f"{count} {words[f'removed_{kind}' + '_many' * (count != 1)]}"
        for kind, count in preview.removed.items()
        if f"removed_{kind}" in words
    ]
    if removed:
        notes.append(words["removed"].format(what=", ".join(removed)))
    if preview.is_cut:
        notes.append(words["cut"])
    if preview.links:
        notes.append(words["links"])
    return f'<p class="note">{escape(" ".join(notes))}</p>' if notes else ""


def _format_size(size: int, words: Mapping[str, str]) -> str:
    if size < 1_000:
        return words["bytes"].format(count=size)
    return f"{size / 1_000:.0f} kB" if size < 1_000_000 else f"{size / 1_000_000:.1f} MB"
