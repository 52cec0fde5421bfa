-- Events that a transaction of this service caused, until Kafka has acknowledged them.
-- `headers` is a JSON object without `ce_source`, which the relay adds. A dead letter that is replayed goes out as it
-- came in instead: with `header_names` and `header_values`, and with whatever its key and its value are.
CREATE TABLE outbox (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic         text        NOT NULL,
    key           bytea,
    payload       bytea,
    headers       text,
    header_names  bytea[],
    header_values bytea[],
    created_at    timestamptz NOT NULL DEFAULT now(),
    CHECK ((headers IS NULL) = (header_names IS NOT NULL AND header_values IS NOT NULL))
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Events that this service could not handle, byte for byte, until somebody replays or drops them; then for a while.
-- A topic that was made anew starts at offset 0 again: Kafka's id of the topic tells the two apart.
CREATE TABLE dead_letters (
    id            bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    topic         text        NOT NULL, -- without the installation's prefix
    topic_id      uuid        NOT NULL,
    partition     integer     NOT NULL,
    "offset"      bigint      NOT NULL,
    key           bytea,
    value         bytea,
    header_names  bytea[]     NOT NULL,
    header_values bytea[]     NOT NULL,
    tenant_id     uuid,                 -- NULL: the record could not be read as an event
    error         text        NOT NULL,
    reason        text        NOT NULL,
    parked_at     timestamptz NOT NULL DEFAULT now(),
    state         text        NOT NULL DEFAULT 'unresolved' CHECK (state IN ('unresolved', 'replayed', 'dropped')),
    resolved_by   text,
    resolved_at   timestamptz,
    PRIMARY KEY (topic, topic_id, partition, "offset"),
    CHECK ((state = 'unresolved') = (resolved_at IS NULL) AND (resolved_by IS NULL) = (resolved_at IS NULL))
);
CREATE INDEX dead_letters_unresolved ON dead_letters (id) WHERE state = 'unresolved';
CREATE INDEX dead_letters_resolved ON dead_letters (resolved_at) WHERE state <> 'unresolved';
