-- The tenants whose quarantine is mirrored. Whoever holds the latest `turn` may write what Exchange says.
CREATE TABLE syncs (
    tenant_id    uuid        PRIMARY KEY,
    due_at       timestamptz NOT NULL DEFAULT now(),
    attempts     integer     NOT NULL DEFAULT 0,
    turn         bigint      NOT NULL DEFAULT 0,
    -- All that was received before it has been read.
    read_until   timestamptz,
    -- Counts the whole readings of all days. What two of them in a row did not find is gone.
    sweep        bigint      NOT NULL DEFAULT 0,
    swept_at     timestamptz,
    succeeded_at timestamptz,
    -- Why the last round failed, in Microsoft's words where there are any.
    trouble      text
);

-- Quarantined mails, one row for each recipient.
CREATE TABLE messages (
    -- Made of tenant, identity and recipient.
    message_id          uuid        PRIMARY KEY,
    tenant_id           uuid        NOT NULL,
    -- Exchange's: the network message id, a backslash, and the id of the row in the quarantine.
    identity            text        NOT NULL,
    recipient           text        NOT NULL,
    -- How many recipients share the row in the quarantine.
    sharing             integer     NOT NULL,
    network_message_id  text        NOT NULL,
    internet_message_id text,
    sender              text,
    sender_domain       text,
    subject             text,
    size                bigint      NOT NULL,
    quarantine_type     text        NOT NULL,
    policy_type         text        NOT NULL,
    policy_name         text        NOT NULL,
    -- The quarantine policy: TagName.
    quarantine_policy   text        NOT NULL,
    direction           text        NOT NULL,
    received_at         timestamptz NOT NULL,
    expires_at          timestamptz NOT NULL,
    status              text        NOT NULL CHECK (status IN ('not-released', 'requested', 'preparing', 'released',
                                                               'approved', 'denied', 'error', 'expired', 'deleted')),
    released_by         text[]      NOT NULL DEFAULT '{}',
    first_seen_at       timestamptz NOT NULL DEFAULT now(),
    status_changed_at   timestamptz NOT NULL DEFAULT now(),
    -- When we last did something that Exchange may take a while to show.
    acted_at            timestamptz,
    sweep               bigint      NOT NULL
);
-- Pending release requests come first in every list.
CREATE INDEX messages_pending_first ON messages (tenant_id, (status = 'requested') DESC, received_at DESC, message_id DESC);
CREATE INDEX messages_of_mail ON messages (tenant_id, network_message_id);
CREATE INDEX messages_of_recipient ON messages (tenant_id, recipient, received_at DESC);
CREATE INDEX messages_of_sender ON messages (tenant_id, sender, received_at DESC);
CREATE INDEX messages_held ON messages (tenant_id, expires_at)
    WHERE status IN ('not-released', 'requested', 'preparing', 'denied', 'error');

-- What quarantine policies let users do: EndUserQuarantinePermissionsValue.
CREATE TABLE policies (
    tenant_id   uuid    NOT NULL,
    name        text    NOT NULL,
    permissions integer NOT NULL,
    notifies    boolean NOT NULL,
    PRIMARY KEY (tenant_id, name)
);
