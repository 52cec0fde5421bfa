CREATE TABLE submissions (
    submission_id   uuid        PRIMARY KEY,
    tenant_id       uuid        NOT NULL,
    case_id         uuid        NOT NULL,
    category        text        NOT NULL,
    recipient       text        NOT NULL,
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
    -- The reasons for which a delay was told already.
    delays_told     text[]      NOT NULL DEFAULT '{}',
    graph_id        text
);
CREATE INDEX submissions_due ON submissions (due_at) WHERE state = 'due';
CREATE UNIQUE INDEX submissions_graph_id ON submissions (tenant_id, graph_id);

-- Calls that Microsoft counts. `item` is null when the call is known not to have made a submission.
CREATE TABLE calls (
    submission_id uuid        NOT NULL,
    tenant_id     uuid        NOT NULL,
    item          text,
    at            timestamptz NOT NULL
);
CREATE INDEX calls_newest ON calls (tenant_id, at);
CREATE INDEX calls_of_item ON calls (tenant_id, item, at);
