"""A Cyrus IMAP installation, read as Cyrus' own smmapd reads it, and never written."""
