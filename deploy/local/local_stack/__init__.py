"""Run all of Backstop on one machine: Kafka, PostgreSQL, the simulator of Microsoft 365 and every service."""
