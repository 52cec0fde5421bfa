-- Requested blocks of senders and URLs, and what became of them.
CREATE TABLE blocks (
    block_id     uuid        PRIMARY KEY,
    tenant_id    uuid        NOT NULL,
    -- Empty: the Tenant Allow/Block List.
    mailbox      text        NOT NULL,
    value        text        NOT NULL,
    -- The block of the request, as JSON. Text, because jsonb rejects characters that a forged sender may contain.
    block        text        NOT NULL,
    case_id      uuid,
    expires_at   timestamptz,
    traceparent  text,
    requested_at timestamptz NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now(),
    seq          bigint      GENERATED ALWAYS AS IDENTITY,
    -- withdrawn: a clean verdict ended the block, and its entry is still to be removed.
    -- entry_kept: the block has ended, but somebody else's entry goes on blocking the value.
    state        text        NOT NULL
                             CHECK (state IN ('pending', 'applied', 'failed', 'withdrawn', 'removed', 'entry_kept')),
    -- True once the case has expired: the row is deleted as soon as the block can have no effect in Exchange.
    case_expired boolean     NOT NULL DEFAULT false
);
CREATE INDEX blocks_of_entry ON blocks (tenant_id, mailbox, value);
CREATE INDEX blocks_of_case ON blocks (tenant_id, case_id);

-- List entries that Exchange has or is to have: one row for all blocks of the same value in the same list.
CREATE TABLE entries (
    tenant_id    uuid        NOT NULL,
    mailbox      text        NOT NULL,
    value        text        NOT NULL,
    due_at       timestamptz NOT NULL DEFAULT now(),
    attempts     integer     NOT NULL DEFAULT 0,
    -- True from the claim until the outcome is recorded: a call may have taken effect, so the next attempt checks first.
    in_doubt     boolean     NOT NULL DEFAULT false,
    -- For somebody else's entry that was extended: its end before that, and the end that it was given. NULL: never.
    original_end timestamptz,
    extended_end timestamptz,
    PRIMARY KEY (tenant_id, mailbox, value)
);
CREATE INDEX entries_due ON entries (due_at) WHERE due_at < 'infinity';

-- Clean verdicts, kept because one may arrive before the block that it withdraws.
CREATE TABLE clean_verdicts (
    tenant_id uuid        NOT NULL,
    case_id   uuid        NOT NULL,
    read_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, case_id)
);
