-- Wishes to block a sender, and what became of them.
CREATE TABLE blocks (
    block_id     uuid        PRIMARY KEY,
    tenant_id    uuid        NOT NULL,
    -- Empty: the Tenant Allow/Block List.
    mailbox      text        NOT NULL,
    value        text        NOT NULL,
    -- The wish as it came, in JSON. Text, because jsonb refuses characters that a forged sender may hold.
    block        text        NOT NULL,
    case_id      uuid,
    expires_at   timestamptz,
    traceparent  text,
    requested_at timestamptz NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now(),
    seq          bigint      GENERATED ALWAYS AS IDENTITY,
    -- lifting: the verdict says clean; kept: it ended, but an entry that is not ours goes on blocking.
    state        text        NOT NULL
                             CHECK (state IN ('pending', 'applied', 'failed', 'lifting', 'removed', 'kept')),
    -- True when the case is gone: the row goes too, as soon as nothing in Exchange can be its doing any more.
    case_expired boolean     NOT NULL DEFAULT false
);
CREATE INDEX blocks_of_entry ON blocks (tenant_id, mailbox, value);
CREATE INDEX blocks_of_case ON blocks (tenant_id, case_id);

-- What Exchange has or is to have: one row, however many blocks want the same.
CREATE TABLE entries (
    tenant_id     uuid        NOT NULL,
    mailbox       text        NOT NULL,
    value         text        NOT NULL,
    due_at        timestamptz NOT NULL DEFAULT now(),
    attempts      integer     NOT NULL DEFAULT 0,
    -- True from the claim until the outcome is recorded: nobody else may call, and the next one looks first.
    unanswered    boolean     NOT NULL DEFAULT false,
    -- The end that somebody else's entry had before we extended it, and the end that we gave it; null: never.
    extended_from timestamptz,
    extended_to   timestamptz,
    PRIMARY KEY (tenant_id, mailbox, value)
);
CREATE INDEX entries_due ON entries (due_at) WHERE due_at < 'infinity';

-- Clean verdicts, because one may arrive before the block that it withdraws.
CREATE TABLE clean_verdicts (
    tenant_id uuid        NOT NULL,
    case_id   uuid        NOT NULL,
    read_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, case_id)
);
