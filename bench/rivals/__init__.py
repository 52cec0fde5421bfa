"""The programs that Backstop is compared with."""
