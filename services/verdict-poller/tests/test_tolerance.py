"""Answers and settings of any shape."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from verdict_builders import RECIPIENT, SENDER, URL, explained
from verdict_cases import PROVEN

from verdict_poller.rules import needed_queries
from verdict_poller.submission_result import is_final, read_result

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["fileName", "Domain"]), inner),
    max_leaves=4,
)


RESULT = ["category", "detail", "detectedUrls", "detectedFiles", "userMailboxSetting"]


ANSWERS = st.fixed_dictionaries({}, optional=dict.fromkeys(RESULT, JSON))


ENTITIES = st.fixed_dictionaries(
    {}, optional={"id": JSON, "status": JSON, "attackSimulationInfo": JSON, "result": JSON | ANSWERS}
)


PROPERTIES = sorted(
    {key for case in PROVEN for rows in case.rows.values() for row in rows for key in row}
    | {"RecipientDomainIs", "SentTo", "ExceptIfSentTo", "HostedContentFilterPolicy", "Priority", "IsBuiltInProtection"}
)


@given(ENTITIES)
@settings(max_examples=150)
def test_any_answer_of_microsoft_is_read_and_explained(entity: dict[str, Any]) -> None:
    """Any JSON object is read, judged and explained."""
    answer = read_result(entity)

    assert isinstance(is_final(answer), bool)
    assert explained(answer)


@given(st.data())
@settings(max_examples=150)
def test_any_row_of_a_cmdlet_is_tolerated(data: st.DataObject) -> None:
    """Whatever type a property has, there is an explanation."""
    case = data.draw(st.sampled_from(PROVEN))
    values = JSON | st.sampled_from([SENDER, "fabrikam.example", "192.0.2.0/24", "True", "Default", URL])
    row = st.dictionaries(st.sampled_from(PROPERTIES), values, max_size=6)
    rows = {query: data.draw(st.lists(row, max_size=2)) for query in needed_queries(case.answer, case.mail, RECIPIENT)}

    assert explained(case.answer, case.mail, rows)
