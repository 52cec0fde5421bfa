-- How users hear of their quarantined mail. A tenant without a row sends no digests.
CREATE TABLE settings (
    tenant_id  uuid        PRIMARY KEY,
    settings   jsonb       NOT NULL,
    changed_by text        NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- The periods that were planned: all digests of one, or none.
CREATE TABLE periods (
    tenant_id uuid        NOT NULL,
    every     text        NOT NULL,
    ended_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, every, ended_at)
);

-- One mail to one recipient about one period.
CREATE TABLE digests (
    -- Made of tenant, recipient and period.
    digest_id  uuid        PRIMARY KEY,
    tenant_id  uuid        NOT NULL,
    recipient  text        NOT NULL,
    every      text        NOT NULL,
    ended_at   timestamptz NOT NULL,
    state      text        NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sent', 'nothing', 'failed')),
    -- Graph's id of the one draft that may be sent; written before it is.
    draft_id   text,
    detail     text,
    planned_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    due_at     timestamptz NOT NULL DEFAULT now(),
    attempts   integer     NOT NULL DEFAULT 0
);
CREATE INDEX digests_due ON digests (due_at) WHERE state = 'pending';

-- The digest that tells the recipient of the mail.
ALTER TABLE messages ADD COLUMN digest_id uuid;
CREATE INDEX messages_of_digest ON messages (digest_id);
CREATE INDEX messages_untold ON messages (tenant_id, first_seen_at) WHERE digest_id IS NULL AND status = 'not-released';
