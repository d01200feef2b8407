"""The milter front end: an MTA asks at RCPT, through libmilter."""
