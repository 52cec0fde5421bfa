"""
Domains and sites shared by many unrelated people, so that a block would hit bystanders. Tables that are easy to extend.

Domains under which anybody can register a name come from the Public Suffix List and are not repeated here. Entries were
taken from the services' own documentation; which of them phishers abuse is known from public phishing corpora.
"""

import re
from urllib.parse import unquote

from publicsuffixlist import PublicSuffixList

from mail import is_wrapper

# fmt: off
PROVIDERS = frozenset((
    "126.com", "163.com", "1und1.de", "a1.net", "abv.bg", "alice.it", "aliyun.com", "aol.com", "aon.at", "arcor.de",
    "att.net", "bellsouth.net", "bigpond.com", "bk.ru", "bluewin.ch", "bol.com.br", "btinternet.com", "centrum.cz",
    "centurylink.net", "charter.net", "chello.at", "club-internet.fr", "comcast.net", "consultant.com", "cox.net",
    "daum.net", "docomo.ne.jp", "earthlink.net", "email.com", "email.cz", "engineer.com", "ezweb.ne.jp",
    "fastmail.com", "foxmail.com", "free.fr", "freenet.de", "frontier.com", "globo.com", "gmail.com", "gmx.at",
    "gmx.ch", "gmx.com", "gmx.de", "gmx.net", "googlemail.com", "hanmail.net", "hey.com", "hispeed.ch", "home.nl",
    "hotmail.com", "hushmail.com", "i.ua", "icloud.com", "ig.com.br", "inbox.lv", "inbox.ru", "interia.pl",
    "juno.com", "kabelmail.de", "kpnmail.nl", "laposte.net", "libero.it", "list.ru", "live.com", "mac.com",
    "mail.com", "mail.de", "mail.ee", "mail.ru", "mailbox.org", "me.com", "msn.com", "naver.com", "netzero.net",
    "neuf.fr", "nifty.com", "ntlworld.com", "numericable.fr", "o2.pl", "onet.pl", "online.no", "optonline.net",
    "orange.fr", "outlook.com", "planet.nl", "pm.me", "post.com", "posteo.de", "proton.me", "protonmail.com",
    "qq.com", "rambler.ru", "rediffmail.com", "rocketmail.com", "rogers.com", "sbcglobal.net", "seznam.cz", "sfr.fr",
    "shaw.ca", "sina.com", "sky.com", "skynet.be", "softbank.ne.jp", "sohu.com", "sunrise.ch", "t-online.de",
    "talktalk.net", "telenet.be", "telia.com", "terra.com.br", "tin.it", "tiscali.it", "tuta.com", "tuta.io",
    "tutanota.com", "ukr.net", "uol.com.br", "usa.com", "verizon.net", "versanet.de", "virgilio.it",
    "virginmedia.com", "vodafone.de", "wanadoo.fr", "web.de", "windstream.net", "wp.pl", "xs4all.nl", "yahoo.com",
    "yandex.com", "yandex.ru", "yeah.net", "ymail.com", "ziggo.nl", "zoho.com", "zohomail.com",
))
"""Consumer mail providers: an address belongs to one person, the domain to all of their customers."""
_NATIONAL_PROVIDERS = frozenset(("aol", "gmx", "hotmail", "live", "outlook", "yahoo"))
_NATIONAL_SERVICES = frozenset(("amazon", "ebay", "google", "paypal"))
"""Providers and services that have a domain in many countries, such as yahoo.co.jp."""
_COUNTRIES = frozenset((
    "ae", "at", "be", "ca", "ch", "cl", "co.id", "co.il", "co.in", "co.jp", "co.kr", "co.nz", "co.th", "co.uk",
    "co.za", "com.ar", "com.au", "com.br", "com.co", "com.hk", "com.mx", "com.my", "com.pe", "com.ph", "com.sg",
    "com.tr", "com.tw", "com.vn", "cz", "de", "dk", "es", "eu", "fi", "fr", "gr", "hu", "ie", "in", "it", "jp", "nl",
    "no", "pl", "pt", "ro", "se",
))
"""Suffixes under which these companies own their names; elsewhere somebody else may have registered them."""

SERVICES = frozenset((
    "adobe.com", "adobesign.com", "airtable.com", "amazon.com", "amazonses.com", "apple.com", "asana.com",
    "atlassian.com", "atlassian.net", "box.com", "calendly.com", "canva.com", "cloudflare.com", "constantcontact.com",
    "discord.com", "docusign.com", "docusign.eu", "docusign.net", "dropbox.com", "dropboxmail.com", "ebay.com",
    "echosign.com", "eventbrite.com", "facebook.com", "facebookmail.com", "figma.com", "formstack.com",
    "freshdesk.com", "github.com", "gitlab.com", "google.com", "hubspot.com", "hubspotemail.net", "instagram.com",
    "intuit.com", "jotform.com", "linkedin.com", "mailchimp.com", "mailchimpapp.net", "mailgun.net", "mailgun.org",
    "mailjet.com", "mandrillapp.com", "mcsv.net", "microsoft.com", "microsoftonline.com", "miro.com", "monday.com",
    "notion.so", "office.com", "office365.com", "onmicrosoft.com", "paypal.com", "pinterest.com", "postmarkapp.com",
    "rsgsv.net", "salesforce.com", "sendgrid.com", "sendgrid.net", "sendinblue.com", "sharepoint.com",
    "sharepointonline.com", "shopify.com", "shopifyemail.com", "slack.com", "smartsheet.com", "sparkpostmail.com",
    "square.com", "squareup.com", "stripe.com", "surveymonkey.com", "teamviewer.com", "trello.com", "twitter.com",
    "typeform.com", "wetransfer.com", "wix.com", "x.com", "xero.com", "yammer.com", "zendesk.com", "zoom.us",
))
"""Services, with their subdomains, that send mail on behalf of their users from addresses shared by all of them."""

_SIGN_IN_HOSTS = frozenset((
    "account.apple.com", "account.docusign.com", "account.live.com", "account.microsoft.com", "accounts.google.com",
    "appleid.apple.com", "auth.openai.com", "autologon.microsoftazuread-sso.com", "devicelogin.microsoft.com",
    "id.atlassian.com", "idmsa.apple.com", "login.docusign.net", "login.live.com", "login.microsoft.com",
    "login.microsoftonline.com", "login.microsoftonline.us", "login.okta.com", "login.partner.microsoftonline.cn",
    "login.salesforce.com", "login.windows.net", "login.yahoo.com", "myaccount.google.com", "myaccount.microsoft.com",
    "mysignins.microsoft.com", "outlook.live.com", "outlook.office.com", "outlook.office365.com", "portal.azure.com",
    "secure.login.gov", "signin.aws.amazon.com", "signin.ebay.com", "sts.windows.net", "www.office.com",
))
"""Hosts where everybody signs in or works: the path never distinguishes an attack from a normal visit."""

_SHARED_SITES = SERVICES | frozenset((
    "acrobat.com", "aka.ms", "archive.org", "azure.com", "bing.com", "cloud.microsoft", "docsend.com",
    "doubleclick.net", "dropboxusercontent.com", "duckduckgo.com", "dweb.link", "evernote.com", "exct.net",
    "fbsbx.com", "googleadservices.com", "googleapis.com", "googleusercontent.com", "hsforms.com", "ipfs.io",
    "jsdelivr.net", "list-manage.com", "mediafire.com", "mega.nz", "netflix.com", "office.net", "okta.com",
    "onedrive.com", "onenote.com", "pcloud.com", "powerapps.com", "powerbi.com", "reddit.com", "rs6.net",
    "scribd.com", "sharefile.com", "tally.so", "teams.live.com", "tiktok.com", "vk.com", "w3.org", "weebly.com",
    "whatsapp.com", "wikipedia.org", "windows.net", "youtube.com", "zohopublic.com",
))
"""Sites, with their subdomains, that host documents, forms, files and short links of unrelated people."""
_CUSTOMER_HOSTS = frozenset((
    "app.box.com", "atlassian.net", "freshdesk.com", "my.salesforce.com", "okta.com", "onmicrosoft.com",
    "sharefile.com", "weebly.com", "zendesk.com",
))
"""Sites that give each customer a host name: that host can be blocked, the site cannot."""

_USER_CHOSEN_PATHS = frozenset((
    "1drv.ms", "bit.ly", "bitbucket.org", "buff.ly", "cutt.ly", "discord.gg", "fb.me",
    "firebasestorage.googleapis.com", "forms.cloud.microsoft", "forms.gle", "forms.office.com", "github.com",
    "githubusercontent.com", "gitlab.com", "goo.gl", "is.gd", "linktr.ee", "lnkd.in", "medium.com", "ow.ly",
    "pastebin.com", "qr.io", "rb.gy", "rebrand.ly", "s.id", "shorturl.at", "sites.google.com",
    "storage.googleapis.com", "t.co", "t.ly", "t.me", "telegra.ph", "telegram.me", "tiny.cc", "tinyurl.com",
    "typeform.com", "v.gd", "wa.me", "we.tl", "youtu.be",
))
"""Sites whose paths are chosen by users or are short links; on other sites only an id identifies one page."""
_SITE_PAGES = frozenset((
    "about", "account", "accounts", "app", "apps", "business", "dashboard", "explore", "features", "feed", "groups",
    "help", "home", "index.html", "index.php", "join", "latest", "login", "marketplace", "new", "notifications",
    "pages", "plans", "pricing", "privacy", "search", "security", "settings", "signin", "signup", "support", "terms",
    "topics", "trending",
))
"""Path segments that belong to such a site itself."""
# fmt: on
_ID = re.compile(r"(?=[^0-9]{0,200}[0-9])[A-Za-z0-9_!~:-]{10,}")
_SCRIPT = re.compile(r"[^.]{1,100}\.(?:aspx?|jsp|php|do)", re.IGNORECASE)

_SUFFIXES = PublicSuffixList()


def why_domain_is_shared(domain: str, *, for_tenant: bool, protected: frozenset[str] = frozenset()) -> str | None:
    """Return why blocking *domain* would hit bystanders, or None. *protected* are additional shared domains."""
    if _SUFFIXES.is_public(domain):
        return f"{domain} is a public suffix: unrelated people have their own domains under it"
    if domain in PROVIDERS or _is_below(domain, protected) or _is_national(domain, _NATIONAL_PROVIDERS):
        return f"{domain} is shared by many unrelated people: only single addresses of it can be blocked"
    return why_sender_is_shared(domain) if for_tenant else None


def why_sender_is_shared(domain: str) -> str | None:
    """Return why blocking an address of *domain* for a tenant would hit bystanders, or None."""
    if _is_shared(domain, SERVICES) or _is_national(domain, _NATIONAL_SERVICES):
        return f"{domain} sends mail for all users of that service: block what the message links to instead"
    return None


def why_url_is_shared(host: str, path: str, *, has_query: bool, protected: frozenset[str] = frozenset()) -> str | None:
    """
    Return why an entry of *host* and *path* would hit bystanders, or None.

    *has_query* says that the URL has a query, which an entry cannot hold: *path* alone must identify one page.
    """
    if is_wrapper(host):
        return f"{host} only redirects: block the URL that it leads to"
    if _is_below(host, _SIGN_IN_HOSTS):
        return f"{host} is where everybody signs in or works"
    is_shared = (
        _SUFFIXES.is_public(host)
        or _is_below(host, PROVIDERS | protected)
        or _is_national(host, _NATIONAL_PROVIDERS | _NATIONAL_SERVICES)
        or _is_shared(host, _SHARED_SITES | _USER_CHOSEN_PATHS)
    )
    user_chosen = _SUFFIXES.is_public(host) or _is_below(host, _USER_CHOSEN_PATHS)
    if not is_shared or _identifies_one_page(path, user_chosen=user_chosen, has_query=has_query):
        return None
    return f"{host} is shared by many unrelated people: only single pages of it can be blocked" + (
        ", and this URL identifies its page by the query, which an entry cannot hold" if has_query else ""
    )


def _is_below(domain: str, table: frozenset[str]) -> bool:
    labels = domain.split(".")
    return any(".".join(labels[start:]) in table for start in range(len(labels)))


def _is_shared(domain: str, table: frozenset[str]) -> bool:
    """Return True if *domain* is in or below *table* and is not the host of a single customer."""
    if not _is_below(domain, table):
        return False
    above = domain.removeprefix("www.").partition(".")[2]
    return not (_is_below(above, _CUSTOMER_HOSTS) or _is_below(_SUFFIXES.publicsuffix(domain) or "", table))


def _is_national(domain: str, names: frozenset[str]) -> bool:
    name, _, suffix = (_SUFFIXES.privatesuffix(domain) or "").partition(".")
    return name in names and suffix in _COUNTRIES


def _identifies_one_page(path: str, *, user_chosen: bool, has_query: bool) -> bool:
    """
    Return True if *path* contains an id: ten or more characters, one of them a digit.

    With *user_chosen*, any segment that is not one of the site's own pages is enough. A script such as `.aspx` counts
    as the site's own if a query follows.
    """
    segments = [segment for segment in unquote(path).split("/") if segment]
    if ".." in segments:
        return False
    candidates = (segment for segment in segments if len(segment) > 1 and segment.lower() not in _SITE_PAGES)
    if user_chosen and any(not (has_query and _SCRIPT.fullmatch(segment)) for segment in candidates):
        return True
    return any(_ID.fullmatch(segment) for segment in segments)
