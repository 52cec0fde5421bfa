"""What every service rides on. Knows no word of the domain: events are events, rows are rows."""
