-- People are counted, not reports: a signed-in person is known by the object id, whatever address the report names.
ALTER TABLE reports ADD COLUMN reporter_id text;
-- What stands in Microsoft's list for a block that was applied.
ALTER TABLE blocks ADD COLUMN entry text;
