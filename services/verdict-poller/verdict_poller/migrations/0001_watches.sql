-- Submissions whose verdict is awaited: watching -> answered (result has Microsoft's answer) -> published (verdict-ready).
CREATE TABLE watches (
    submission_id uuid        PRIMARY KEY,
    tenant_id     uuid        NOT NULL,
    case_id       uuid        NOT NULL,
    graph_id      text        NOT NULL,
    category      text        NOT NULL,
    recipient     text        NOT NULL,
    folders       text[]      NOT NULL,
    message       jsonb       NOT NULL,
    traceparent   text,
    created_at    timestamptz NOT NULL,
    watched_since timestamptz NOT NULL DEFAULT now(),
    state         text        NOT NULL DEFAULT 'watching' CHECK (state IN ('watching', 'answered', 'published')),
    due_at        timestamptz NOT NULL,
    attempts      integer     NOT NULL DEFAULT 0,
    result        jsonb
);
CREATE INDEX watches_due ON watches (due_at) WHERE state = 'watching';
CREATE INDEX watches_answered ON watches (due_at) WHERE state = 'answered';
CREATE INDEX watches_of_case ON watches (case_id);

-- The blocks of cases, because a verdict lists those in force. `block` is null while only its removal is known: the two
-- events arrive on separate topics, in any order.
CREATE TABLE blocks (
    block_id    uuid        PRIMARY KEY,
    case_id     uuid        NOT NULL,
    block       jsonb,
    removed     boolean     NOT NULL DEFAULT false,
    -- A removal may arrive after its case has expired, so removed blocks are purged by age.
    recorded_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX blocks_of_case ON blocks (case_id);
