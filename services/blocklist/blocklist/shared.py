"""
Domains and sites that strangers share, so that to block them hits bystanders. Tables of data, easy to add to.

A domain below which anybody can register comes from the Public Suffix List, and is not named here. Whose names these
are is what their own pages say; which of them phishers hide behind is what public phishing corpora show.
"""

import re

from publicsuffixlist import PublicSuffixList

from mail import is_wrapper

# fmt: off
PROVIDERS = frozenset((
    "163.com", "aol.com", "att.net", "bellsouth.net", "bigpond.com", "bluewin.ch", "btinternet.com", "comcast.net",
    "cox.net", "fastmail.com", "free.fr", "freenet.de", "gmail.com", "gmx.at", "gmx.ch", "gmx.com", "gmx.de",
    "gmx.net", "googlemail.com", "hotmail.com", "icloud.com", "laposte.net", "libero.it", "live.com", "mac.com",
    "mail.com", "mail.ru", "me.com", "msn.com", "naver.com", "orange.fr", "outlook.com", "pm.me", "proton.me",
    "protonmail.com", "qq.com", "rediffmail.com", "rocketmail.com", "rogers.com", "sbcglobal.net", "sfr.fr",
    "shaw.ca", "sky.com", "t-online.de", "terra.com.br", "tiscali.it", "uol.com.br", "verizon.net", "virgilio.it",
    "wanadoo.fr", "web.de", "yahoo.com", "yandex.com", "yandex.ru", "ymail.com", "zoho.com",
))
"""Mail providers of consumers: an address is one person's, the domain is everybody's."""
_PROVIDER_NAMES = frozenset(("aol", "gmx", "hotmail", "live", "msn", "outlook", "yahoo", "yandex"))
"""Providers that have a domain in many countries, such as yahoo.co.jp."""

SERVICES = frozenset((
    "adobe.com", "adobesign.com", "airtable.com", "amazon.com", "amazonses.com", "apple.com", "asana.com",
    "atlassian.com", "atlassian.net", "box.com", "calendly.com", "canva.com", "cloudflare.com", "constantcontact.com",
    "discord.com", "docusign.com", "docusign.net", "dropbox.com", "dropboxmail.com", "ebay.com", "echosign.com",
    "eventbrite.com", "facebook.com", "facebookmail.com", "figma.com", "formstack.com", "freshdesk.com", "github.com",
    "gitlab.com", "google.com", "hubspot.com", "hubspotemail.net", "instagram.com", "intuit.com", "jotform.com",
    "linkedin.com", "mailchimp.com", "mailchimpapp.net", "mailgun.net", "mailgun.org", "mailjet.com",
    "mandrillapp.com", "mcsv.net", "microsoft.com", "microsoftonline.com", "miro.com", "monday.com", "notion.so",
    "office.com", "office365.com", "onmicrosoft.com", "paypal.com", "pinterest.com", "postmarkapp.com", "rsgsv.net",
    "salesforce.com", "sendgrid.com", "sendgrid.net", "sendinblue.com", "sharepoint.com", "sharepointonline.com",
    "shopify.com", "shopifyemail.com", "slack.com", "smartsheet.com", "sparkpostmail.com", "square.com",
    "squareup.com", "stripe.com", "surveymonkey.com", "teamviewer.com", "trello.com", "twitter.com", "typeform.com",
    "wetransfer.com", "wix.com", "x.com", "xero.com", "yammer.com", "zendesk.com", "zoom.us",
))
"""Services that send mail for whoever uses them, from addresses that all of these share. Their subdomains too."""

_SIGN_IN = frozenset((
    "account.apple.com", "account.docusign.com", "account.live.com", "account.microsoft.com", "accounts.google.com",
    "appleid.apple.com", "auth.openai.com", "id.atlassian.com", "idmsa.apple.com", "login.docusign.net",
    "login.live.com", "login.microsoft.com", "login.microsoftonline.com", "login.microsoftonline.us",
    "login.okta.com", "login.salesforce.com", "login.windows.net", "login.yahoo.com", "myaccount.google.com",
    "myaccount.microsoft.com", "mysignins.microsoft.com", "outlook.office.com", "outlook.office365.com",
    "portal.azure.com", "secure.login.gov", "signin.aws.amazon.com", "signin.ebay.com", "sts.windows.net",
    "www.office.com",
))
"""Where everybody signs in or works: what tells an attack from anybody's visit is never the path."""

_SITES = SERVICES | frozenset((
    "acrobat.com", "archive.org", "azure.com", "bing.com", "cloud.microsoft", "docsend.com", "dropboxusercontent.com",
    "duckduckgo.com", "dweb.link", "evernote.com", "firebasestorage.googleapis.com", "googleusercontent.com",
    "ipfs.io", "list-manage.com", "mediafire.com", "mega.nz", "netflix.com", "office.net", "okta.com", "onedrive.com",
    "onenote.com", "pcloud.com", "powerapps.com", "powerbi.com", "reddit.com", "scribd.com", "sharefile.com",
    "storage.googleapis.com", "teams.live.com", "tiktok.com", "vk.com", "weebly.com", "whatsapp.com", "wikipedia.org",
    "windows.net", "youtube.com",
))
"""Sites where strangers keep documents, forms, files and short links side by side. Their subdomains too."""
_OWN_HOSTS = frozenset((
    "atlassian.net", "freshdesk.com", "okta.com", "onmicrosoft.com", "sharefile.com", "weebly.com", "zendesk.com",
))
"""Sites that give each customer a host of its own: that host can be blocked, the site cannot."""

_ANY_PATH = frozenset((
    "1drv.ms", "aka.ms", "bit.ly", "bitbucket.org", "buff.ly", "canva.site", "cutt.ly", "discord.gg", "fb.me",
    "forms.cloud.microsoft", "forms.gle", "forms.office.com", "github.com", "githubusercontent.com", "gitlab.com",
    "goo.gl", "is.gd", "linktr.ee", "lnkd.in", "medium.com", "ow.ly", "pastebin.com", "qr.io", "rb.gy", "rebrand.ly",
    "s.id", "shorturl.at", "sites.google.com", "t.co", "t.ly", "t.me", "telegra.ph", "telegram.me", "tiny.cc",
    "tinyurl.com", "typeform.com", "v.gd", "wa.me", "we.tl", "youtu.be",
))
"""Sites whose paths are what strangers named themselves, or short for it; elsewhere only an id names one thing."""
_COMMON = frozenset((
    "about", "account", "accounts", "app", "apps", "business", "dashboard", "explore", "features", "feed", "groups",
    "help", "home", "index.html", "index.php", "join", "latest", "login", "marketplace", "new", "notifications",
    "pages", "plans", "pricing", "privacy", "search", "security", "settings", "signin", "signup", "support", "terms",
    "topics", "trending",
))
"""Pages that such a site has of its own."""
# fmt: on
_ID = re.compile(r"(?=[^0-9]{0,200}[0-9])[A-Za-z0-9_!~-]{10,}")

_SUFFIXES = PublicSuffixList()


def why_not_domain(domain: str, *, for_tenant: bool, protected: frozenset[str] = frozenset()) -> str | None:
    """Say why to block all mail of *domain* would hit bystanders. *protected* are providers beside those known here."""
    if _SUFFIXES.is_public(domain):
        return f"{domain} is a public suffix: strangers have domains of their own below it"
    if domain in PROVIDERS or _is_below(domain, protected) or _is_national_provider(domain):
        return "so many strangers share this domain that only single addresses are blocked"
    return why_not_sender(domain) if for_tenant else None


def why_not_sender(domain: str) -> str | None:
    """Say why to block an address of *domain* for a tenant would hit bystanders."""
    if _is_shared(domain, SERVICES):
        return f"{domain} sends mail for everybody who uses that service: block what the message links to instead"
    return None


def why_not_url(host: str, path: str, *, has_query: bool, protected: frozenset[str] = frozenset()) -> str | None:
    """
    Say why an entry of *host* and *path* would hit bystanders.

    *has_query* tells whether the URL says more (a query, a fragment), which no entry holds: what is left must still
    name one thing.
    """
    if is_wrapper(host):
        return f"{host} only leads elsewhere: block the URL that it leads to"
    if _is_below(host, _SIGN_IN):
        return f"{host} is where everybody signs in or works"
    shared = (
        _SUFFIXES.is_public(host)
        or _is_below(host, PROVIDERS | protected)
        or _is_national_provider(_SUFFIXES.privatesuffix(host) or "")
    )
    any_path = not has_query and (_SUFFIXES.is_public(host) or _is_below(host, _ANY_PATH))
    if not (shared or _is_shared(host, _SITES | _ANY_PATH)) or _names_one_thing(path, any_path=any_path):
        return None
    return f"so many strangers share {host} that only single pages of it are blocked" + (
        ", and an entry holds no query, by which alone this URL names one" if has_query else ""
    )


def _is_below(domain: str, table: frozenset[str]) -> bool:
    labels = domain.split(".")
    return any(".".join(labels[start:]) in table for start in range(len(labels)))


def _is_shared(domain: str, table: frozenset[str]) -> bool:
    """Tell whether *domain* belongs to *table*, and is no host that one customer has there alone."""
    if not _is_below(domain, table):
        return False
    above = domain.removeprefix("www.").partition(".")[2]
    return not (_is_below(above, _OWN_HOSTS) or _is_below(_SUFFIXES.publicsuffix(domain) or "", table))


def _is_national_provider(domain: str) -> bool:
    name, _, suffix = domain.partition(".")
    return name in _PROVIDER_NAMES and len(suffix.rpartition(".")[2]) == 2 and _SUFFIXES.is_public(suffix)


def _names_one_thing(path: str, *, any_path: bool) -> bool:
    """Tell whether *path* holds an id, of ten characters with a digit; *any_path*: anything but pages of the site."""
    segments = [segment for segment in path.split("/") if segment]
    if any_path and any(len(segment) > 2 and segment.lower() not in _COMMON for segment in segments):
        return True
    return any(_ID.fullmatch(segment) for segment in segments)
