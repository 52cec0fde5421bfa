"""
The elements, attributes and styles of a message's HTML that a preview keeps.

`READ` cleans hostile markup before it is rewritten, `WRITE` cleans the result. Styles and attributes are kept only with
values that are known to be harmless.
"""

import re
from html import escape

import nh3

# HTML reopens unclosed formatting elements in every paragraph, which can turn a little markup into gigabytes (see
# mail.text). Under names unknown to HTML they are opened once; in the end they become spans.
FORMATTING = re.compile(
    r"<(/?)(a|b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u)(?=[\s/>])", re.IGNORECASE | re.ASCII
)
STYLE_OF = {
    "x-b": "font-weight:bold",
    "x-strong": "font-weight:bold",
    "x-i": "font-style:italic",
    "x-em": "font-style:italic",
    "x-u": "text-decoration:underline",
    "x-s": "text-decoration:line-through",
    "x-strike": "text-decoration:line-through",
    "x-big": "font-size:larger",
    "x-small": "font-size:smaller",
    "x-code": "font-family:monospace",
    "x-tt": "font-family:monospace",
    "x-font": "",
    "x-nobr": "",
}
# fmt: off
_BLOCKS = frozenset((
    "address", "article", "blockquote", "center", "dd", "div", "dl", "dt", "footer", "h1", "h2", "h3", "h4", "h5", "h6",
    "header", "li", "main", "ol", "p", "pre", "section", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
    "caption",
))
_INLINE = frozenset((
    "abbr", "cite", "del", "ins", "kbd", "mark", "q", "samp", "span", "sub", "sup", "var",
))
VOID = frozenset(("br", "hr", "img", "wbr"))
_WITH_CONTENT = frozenset((
    "script", "style", "template", "noscript", "noembed", "noframes", "title", "iframe", "frameset", "xmp", "plaintext",
    "svg", "math", "object", "embed", "applet", "audio", "video", "canvas", "select", "datalist", "dialog",
))
_SCHEMES = frozenset((
    "http", "https", "ftp", "mailto", "tel", "sms", "cid", "mid", "data", "javascript", "vbscript", "file", "blob",
    "about", "search-ms", "ms-word", "ms-excel", "ms-appinstaller", "ms-officecmd", "ms-msdt",
))
# fmt: on
"""Schemes of links that are read, to be shown as text. The result contains none of them, except data: of images."""

READ = nh3.Cleaner(
    tags=set(_BLOCKS | _INLINE | VOID | set(STYLE_OF) | {"x-a"}),
    clean_content_tags=set(_WITH_CONTENT),
    attributes={
        "*": {"style", "align", "valign", "width", "height", "bgcolor", "dir", "hidden", "background"},
        "x-a": {"href"},
        "x-font": {"color", "size"},
        "img": {"src", "alt", "srcset"},
        "table": {"border", "cellpadding", "cellspacing"},
        "td": {"colspan", "rowspan"},
        "th": {"colspan", "rowspan"},
    },
    url_schemes=set(_SCHEMES),
    link_rel=None,
)

_SIZE = r"\d{1,2}(?:\.\d{1,3})?(?:px|pt)?"
_BOX = rf"(?:{_SIZE}|auto)(?:\s+(?:{_SIZE}|auto)){{0,3}}"
_COLOUR = r"(?:#[0-9a-f]{3,8}|(?!transparent)[a-z]{3,25}|(?:rgb|hsl)a?\([\d\s.,%/]{1,40}\))"
_LENGTH = r"(?:[0-9]{1,3}(?:\.\d{1,3})?(?:px|pt|em|rem|%)|0)"
_LINE = rf"(?:{_SIZE}\s++)?(?:solid|dashed|dotted|double|none|inset|outset|ridge|groove)?(?:\s*{_COLOUR})?"
_VALUES = {
    name: re.compile(pattern)
    for pattern, names in {
        _COLOUR: "color background-color border-color",
        r"bold|bolder|normal|lighter|[1-9]00": "font-weight",
        r"italic|normal|oblique": "font-style",
        r"(?:[6-9]|[1-3]\d|4[0-8])(?:\.\d{1,3})?(?:px|pt)|(?:0\.[5-9]\d{0,2}|[12](?:\.\d{1,3})?|3)r?em"
        r"|(?:[5-9]\d|[12]\d\d)%|(?:x{0,2}-)?small|smaller|medium|larger|(?:x{0,2}-)?large": "font-size",
        r"monospace": "font-family",
        r"underline|line-through|none": "text-decoration",
        r"left|right|center|justify|start|end": "text-align",
        r"top|middle|bottom|baseline|sub|super": "vertical-align",
        r"uppercase|lowercase|capitalize|none": "text-transform",
        r"collapse|separate": "border-collapse",
        _BOX: "padding padding-top padding-right padding-bottom padding-left border-radius",
        _LINE: "border border-top border-right border-bottom border-left",
        rf"{_LENGTH}|auto": "width max-width min-width",
    }.items()
    for name in names.split()
}
"""Harmless properties and values: they cannot load, cover, move or hide anything, or affect anything off the page."""
HIDDEN = re.compile(
    r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)|mso-hide\s*:\s*all"
    r"|(?:font-size|opacity|max-height)\s*:\s*0(?:\.0+)?(?:px|pt|em|rem|%)?\s*(?:!|;|$))"
)

WRITE = nh3.Cleaner(
    tags=set(_BLOCKS | _INLINE | VOID),
    clean_content_tags=set(_WITH_CONTENT),
    attributes={
        "*": {"style", "align", "valign", "dir", "bgcolor"},
        "img": {"src", "alt", "width", "height"},
        "table": {"border", "cellpadding", "cellspacing", "width"},
        "td": {"colspan", "rowspan", "width", "height"},
        "th": {"colspan", "rowspan", "width", "height"},
    },
    allowed_classes={"span": {"link", "target", "warning", "blocked"}, "div": {"text"}},
    filter_style_properties=set(_VALUES),
    url_schemes={"data"},
    url_relative="deny",
    link_rel=None,
)
_DIGITS = re.compile(r"[1-9]\d{0,3}")


def harmless_style(style: str) -> str:
    """Return the declarations of *style* that are known to be harmless."""
    declarations = []
    for declaration in style[:2_000].split(";")[:50]:
        name, _, value = declaration.partition(":")
        name, value = name.strip(), value.replace("!important", "").strip()
        if name == "background":
            name = "background-color"
        if name in _VALUES and value and _VALUES[name].fullmatch(value):
            declarations.append(f"{name}:{value}")
    return ";".join(declarations)


def font_style(attributes: dict[str, str]) -> str:
    """Return the harmless attributes of a font element as a style."""
    sizes = ("x-small", "small", "medium", "large", "x-large", "xx-large", "xx-large")
    size = attributes.get("size", "")
    return harmless_style(
        f"color:{attributes.get('color', '').lower()};font-size:{sizes[int(size) - 1] if size in {*'1234567'} else ''}"
    )


def written_attributes(attributes: dict[str, str], style: str) -> str:
    """Return the attributes to keep as markup, with bounded values."""
    kept = {"style": style} if style else {}
    for name, value in attributes.items():
        value = value.strip().lower()  # noqa: PLW2901
        if name in {"width", "height"}:
            if (size := value.removesuffix("px")) and _DIGITS.fullmatch(size) and int(size) <= 2_000:
                kept[name] = size
            elif re.fullmatch(r"[1-9]\d?%|100%", value):
                kept[name] = value
        elif name in {"colspan", "rowspan", "cellpadding", "cellspacing", "border"}:
            if value.isascii() and value.isdigit() and len(value) < 4:
                kept[name] = str(min(int(value), 50))
        elif (name, value) in _KEYWORDS or (name == "bgcolor" and re.fullmatch(r"#?[a-z0-9]{3,25}", value)):
            kept[name] = value
    return "".join(f' {name}="{escape(value)}"' for name, value in kept.items())


_KEYWORDS = {
    *(("align", word) for word in ("left", "right", "center", "justify")),
    *(("valign", word) for word in ("top", "middle", "bottom", "baseline")),
    *(("dir", word) for word in ("ltr", "rtl", "auto")),
}
