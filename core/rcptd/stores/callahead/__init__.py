"""Call-ahead: asking the next hop by RCPT, over LMTP or SMTP, whether it takes a recipient."""
