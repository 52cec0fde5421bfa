"""Decide which reports are one case, and what the policy does. Pure functions over data."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from backstop_contracts import Actor, ActorKind, Category, Folder, Message, MessageReported, ReportedAs
from backstop_contracts.identity import CaseKey, case_id, content_key, message_id_key

CATEGORY = {
    ReportedAs.PHISHING: Category.PHISHING,
    ReportedAs.MALWARE: Category.MALWARE,
    ReportedAs.JUNK: Category.SPAM,
    ReportedAs.NOT_JUNK: Category.NOT_JUNK,
}
_GRAVITY = (ReportedAs.MALWARE, ReportedAs.PHISHING, ReportedAs.JUNK, ReportedAs.NOT_JUNK)


def keys_of(message: Message) -> list[CaseKey]:
    """Return the identities of a message: its content, by which reports join a case, then its Message-ID if any."""
    keys = [content_key(message)]
    return [*keys, message_id_key(message.internet_message_id)] if message.internet_message_id else keys


def assign(
    reports: Iterable[MessageReported], active: Mapping[CaseKey, UUID]
) -> tuple[list[tuple[MessageReported, UUID]], dict[CaseKey, UUID]]:
    """
    Assign each report to the case that already has its content, else to a new one.

    *active* are the keys of cases that are neither resolved nor dismissed. A closed case accepts no reports, because
    its answer was given for other messages. A report of its content opens a new case, to which the key then belongs.

    The id of a new case is derived from the report that opens it, so that case has submissions and blocks of its own.
    Returns the reports with their cases, in order, and the keys that are new or belong to another case now.
    """
    new: dict[CaseKey, UUID] = {}
    assigned = []
    for report in reports:
        keys = keys_of(report.message)
        content = keys[0]
        opened = active.get(content) or new.get(content) or case_id(report)
        for key in keys:
            if key not in active:
                new.setdefault(key, opened)
        assigned.append((report, opened))
    return assigned, new


def gravest(reported_as: Iterable[ReportedAs]) -> ReportedAs:
    """Return the gravest of what users said: malware, phishing, junk, not junk."""
    said = set(reported_as)
    return next(word for word in _GRAVITY if word in said)


class NotPossibleError(Exception):
    """The case does not allow the decision; the text says why."""


class PolicyError(ValueError):
    """The policy file cannot be used; the text says where and why."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Domains = Annotated[frozenset[str], AfterValidator(lambda domains: frozenset(map(str.lower, domains)))]


class When(_Strict):
    """The conditions of a rule; all must hold. One that is left out holds always."""

    reported_as: frozenset[ReportedAs] = frozenset(ReportedAs)
    """What at least one user reported the message as."""
    folder: frozenset[Folder] | None = None
    """Where at least one user found it; None: anywhere."""
    min_reports: Annotated[int, Field(ge=1)] = 1
    """How many people must have reported it. However often one person does, it counts once."""
    sender_domain: Domains | None = None
    not_sender_domain: Domains = frozenset()


class Then(_Strict):
    """What a rule does."""

    submit: Literal["as-reported", "phishing", "malware", "spam"] | None = None
    block: Literal["sender", "domain"] | None = None
    block_days: Annotated[int, Field(ge=1, le=90)] = 30


class Rule(_Strict):
    """One rule of the policy file."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    when: When = When()
    then: Then

    @property
    def actor(self) -> Actor:
        """The actor of the rule's decisions."""
        return Actor(kind=ActorKind.POLICY, id=self.name, name=self.name)


class Policy(_Strict):
    """Rules for submitting and blocking without an admin. The first one that matches counts."""

    rule: tuple[Rule, ...] = ()

    @property
    def counts_people(self) -> bool:
        """Whether any rule needs to know how many people have reported a case."""
        return any(rule.when.min_reports > 1 for rule in self.rule)

    def first_match(
        self,
        *,
        reported_as: Sequence[ReportedAs],
        folders: Sequence[str],
        people: int,
        sender_domain: str | None,
    ) -> Rule | None:
        """Return the first rule that matches a case, or None: then the case waits for an admin."""
        return next(
            (
                rule
                for rule in self.rule
                if rule.when.reported_as.intersection(reported_as)
                and (rule.when.folder is None or rule.when.folder.intersection(folders))
                and people >= rule.when.min_reports
                and (rule.when.sender_domain is None or sender_domain in rule.when.sender_domain)
                and sender_domain not in rule.when.not_sender_domain
            ),
            None,
        )


def load_policy(file: Path | None) -> Policy:
    """
    Read the policy file (TOML, see policy.example.toml). Without a file there are no rules.

    Raises PolicyError, with the place of the mistake.
    """
    if file is None:
        return Policy()
    try:
        return Policy.model_validate(tomllib.loads(file.read_text()))
    except OSError as error:
        raise PolicyError(f"the policy file cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"the policy file is not TOML: {error}") from None
    except RecursionError:
        raise PolicyError("the policy file is not TOML that can be read: it is nested too deeply") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise PolicyError(f"the policy file: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def category_of(then: Then, reported_as: Iterable[ReportedAs]) -> Category:
    """Return the category in which a rule submits a case."""
    return CATEGORY[gravest(reported_as)] if then.submit in (None, "as-reported") else Category(then.submit)


def why_not_the_sender(message: Message) -> str | None:
    """Return why a block would affect an innocent domain, if Microsoft saw a sender other than the displayed one."""
    delivery = message.delivery
    if delivery.header_from is None or delivery.header_from == message.sender_domain:
        return None
    return (
        f"Microsoft reads the sender as one of {delivery.header_from}: a block would hit {message.sender_domain},"
        " which the message only pretends to come from"
    )


def why_unauthenticated(message: Message) -> str | None:
    """Return why the sender may be innocent, if Microsoft did not find that the message comes from its domain."""
    if message.is_authenticated:
        return None
    return (
        "neither dmarc nor compauth is known to have passed for the sender: the name may be forged, its owner innocent"
    )


def block_lifetime(then: Then) -> timedelta:
    """Return how long a block of this rule lasts."""
    return timedelta(days=then.block_days)
