CREATE INDEX watches_of_case ON watches (case_id);
