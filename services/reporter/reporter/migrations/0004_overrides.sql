-- What a setting did to the mail of a case, where Microsoft says no more: allowed or blocked.
ALTER TABLE cases ADD COLUMN override text;
