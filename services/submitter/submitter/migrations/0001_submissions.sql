CREATE TABLE submissions (
    submission_id   uuid        PRIMARY KEY,
    tenant_id       uuid        NOT NULL,
    case_id         uuid        NOT NULL,
    category        text        NOT NULL,
    recipient       text        NOT NULL,
    -- Where the case's reporters met the message.
    folders         text[]      NOT NULL,
    message         jsonb       NOT NULL,
    mailbox_message jsonb,
    traceparent     text,
    requested_at    timestamptz NOT NULL,
    -- What Microsoft counts as the same item: the message and its recipient.
    item            text        NOT NULL,
    state           text        NOT NULL DEFAULT 'due' CHECK (state IN ('due', 'created', 'failed')),
    due_at          timestamptz NOT NULL DEFAULT now(),
    attempts        integer     NOT NULL DEFAULT 0,
    -- When a call went out whose answer is not recorded: look before repeating it.
    sent_at         timestamptz,
    -- When the last call went out that was never answered. `sent_at` is set back to it when the submission has to wait,
    -- so that what was once missing in Microsoft's list is looked for before each later call, too.
    unanswered_at   timestamptz,
    -- Since when every call has failed, Microsoft being away or not letting us; null after a wait for anything else.
    failing_since   timestamptz,
    -- The reasons for which a delay was published already.
    delays_published text[]      NOT NULL DEFAULT '{}',
    graph_id        text,
    -- Microsoft's id of the submission of another message, to which the reporter's link had led. It is nobody's verdict.
    stray_graph_id  text
);
CREATE INDEX submissions_due ON submissions (due_at) WHERE state = 'due';
CREATE UNIQUE INDEX submissions_graph_id ON submissions (tenant_id, graph_id);
CREATE INDEX submissions_stray ON submissions (tenant_id, stray_graph_id) WHERE stray_graph_id IS NOT NULL;
CREATE INDEX submissions_of_case ON submissions (case_id);

-- Calls that Microsoft counts. `item` is null when the call is known not to have made a submission.
CREATE TABLE calls (
    submission_id uuid        NOT NULL,
    tenant_id     uuid        NOT NULL,
    item          text,
    at            timestamptz NOT NULL
);
CREATE INDEX calls_newest ON calls (tenant_id, at);
CREATE INDEX calls_of_item ON calls (tenant_id, item, at);

-- Until when Microsoft asked to be left alone about a tenant: no replica calls before, whatever comes due.
CREATE TABLE throttled (
    tenant_id uuid        PRIMARY KEY,
    until     timestamptz NOT NULL
);
