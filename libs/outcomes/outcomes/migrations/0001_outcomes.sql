-- What is known of triage's cases. `status` is NULL until case-updated came, `verdict` until verdict-ready.
CREATE TABLE cases (
    case_id    uuid        PRIMARY KEY,
    status     text        CHECK (status IN ('open', 'submitted', 'resolved', 'dismissed')),
    changed_at timestamptz,
    verdict    jsonb,
    read_at    timestamptz
);

-- Blocks that users want for their own mailbox. Once a block has ended, a new request makes the next generation.
CREATE TABLE blocks (
    block_id   uuid    PRIMARY KEY,
    tenant_id  uuid    NOT NULL,
    mailbox    text    NOT NULL,
    sender     text    NOT NULL,
    generation integer NOT NULL,
    status     text    NOT NULL DEFAULT 'requested' CHECK (status IN ('requested', 'applied', 'failed', 'removed')),
    reason     text,
    detail     text,
    UNIQUE (tenant_id, mailbox, sender, generation)
);
