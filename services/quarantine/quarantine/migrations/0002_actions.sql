-- What somebody wants done with a quarantined mail, and what became of it.
CREATE TABLE actions (
    -- Made of the mail, the kind, the variant and the round.
    action_id    uuid        PRIMARY KEY,
    tenant_id    uuid        NOT NULL,
    message_id   uuid        NOT NULL REFERENCES messages,
    -- release, deny, request: Release-QuarantineMessage. report: a user's report; submit: an admin's, with a decision.
    kind         text        NOT NULL CHECK (kind IN ('release', 'deny', 'request', 'report', 'submit')),
    -- What tells two wishes of one kind apart: what is reported, or the hash of the decision.
    variant      text        NOT NULL DEFAULT '',
    -- Counts the wishes after an earlier one failed or was overtaken.
    round        integer     NOT NULL,
    reported_as  text,
    -- The admin's decision, in JSON as the event carries it.
    wanted       text,
    reason       text,
    -- Who wants it: an Actor in JSON.
    by           text        NOT NULL,
    state        text        NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'succeeded', 'failed')),
    already      boolean     NOT NULL DEFAULT false,
    failure      text        CHECK (failure IN ('refused', 'not-allowed', 'gone', 'gave-up')),
    detail       text,
    report_id    uuid,
    traceparent  text,
    requested_at timestamptz NOT NULL DEFAULT now(),
    settled_at   timestamptz,
    due_at       timestamptz NOT NULL DEFAULT now(),
    attempts     integer     NOT NULL DEFAULT 0,
    -- True from the claim until the outcome is recorded: the next attempt looks first.
    unanswered   boolean     NOT NULL DEFAULT false,
    UNIQUE (message_id, kind, variant, round)
);
CREATE INDEX actions_due ON actions (due_at) WHERE state = 'pending';
CREATE INDEX actions_of_report ON actions (report_id);

-- The cases of triage, as far as its events tell. `status` is NULL until case-updated came, `verdict` until verdict-ready.
CREATE TABLE cases (
    case_id    uuid        PRIMARY KEY,
    status     text        CHECK (status IN ('open', 'submitted', 'resolved', 'dismissed')),
    changed_at timestamptz,
    verdict    jsonb,
    read_at    timestamptz
);

CREATE TABLE reports (
    report_id  uuid PRIMARY KEY,
    message_id uuid NOT NULL REFERENCES messages,
    case_id    uuid
);
CREATE INDEX reports_of_message ON reports (message_id);

-- Blocks that users want for their own mailbox. `round` counts the wishes for one sender after an earlier one ended.
CREATE TABLE blocks (
    block_id  uuid    PRIMARY KEY,
    tenant_id uuid    NOT NULL,
    mailbox   text    NOT NULL,
    sender    text    NOT NULL,
    round     integer NOT NULL,
    status    text    NOT NULL CHECK (status IN ('requested', 'applied', 'failed', 'removed')),
    reason    text,
    detail    text,
    UNIQUE (tenant_id, mailbox, sender, round)
);
