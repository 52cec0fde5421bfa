-- Submissions whose verdict is awaited. watching -> judged (Microsoft's answer is here) -> told (verdict-ready is out).
CREATE TABLE watches (
    submission_id uuid        PRIMARY KEY,
    tenant_id     uuid        NOT NULL,
    case_id       uuid        NOT NULL,
    graph_id      text        NOT NULL,
    recipient     text        NOT NULL,
    message       jsonb       NOT NULL,
    traceparent   text,
    created_at    timestamptz NOT NULL,
    watched_since timestamptz NOT NULL DEFAULT now(),
    state         text        NOT NULL DEFAULT 'watching' CHECK (state IN ('watching', 'judged', 'told')),
    due_at        timestamptz NOT NULL,
    attempts      integer     NOT NULL DEFAULT 0,
    result        jsonb
);
CREATE INDEX watches_due ON watches (due_at) WHERE state = 'watching';
CREATE INDEX watches_judged ON watches (due_at) WHERE state = 'judged';
