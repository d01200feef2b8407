-- One session by an independent client: facts, replies, RSET, and a second transaction.
mt.set_timeout(15)
conn = mt.connect(socket)
assert(conn, "no connection")
assert(mt.negotiate(conn, 6, nil, nil) == nil, "negotiation")
for _, step in ipairs({SMFIP_NOHELO, SMFIP_NODATA, SMFIP_NOUNKNOWN, SMFIP_NOHDRS, SMFIP_NOEOH, SMFIP_NOBODY}) do
	assert(mt.test_option(conn, step), "a step that is not needed is asked for")
end
for _, action in ipairs({SMFIF_ADDHDRS, SMFIF_CHGBODY, SMFIF_ADDRCPT, SMFIF_DELRCPT, SMFIF_CHGHDRS}) do
	assert(not mt.test_action(conn, action), "an action is asked for")
end
assert(mt.conninfo(conn, "client.example", "192.0.2.7") == nil, "CONNECT")

mt.macro(conn, SMFIC_MAIL, "i", "LUA1", "{auth_authen}", "joe")
assert(mt.mailfrom(conn, "<a@example.net>", "SIZE=1000") == nil, "MAIL")
mt.macro(conn, SMFIC_RCPT, "{rcpt_mailer}", "esmtp", "{rcpt_addr}", "ok@example.org")
assert(mt.rcptto(conn, "<ok@example.org>") == nil, "RCPT")
assert(mt.getreply(conn) == SMFIR_CONTINUE, "a good recipient is not let through")
assert(mt.rcptto(conn, "<gone@example.org>") == nil, "RCPT")
assert(mt.getreply(conn) == SMFIR_REPLYCODE, "a bad recipient is not refused")
assert(mt.rcptto(conn, "<full@example.org>") == nil, "RCPT")
assert(mt.getreply(conn) == SMFIR_REPLYCODE, "a full mailbox is not deferred")

mt.abort(conn)
assert(mt.mailfrom(conn, "<>") == nil, "MAIL after RSET")
assert(mt.rcptto(conn, "<raise@example.org>") == nil, "RCPT after RSET")
assert(mt.getreply(conn) == SMFIR_REPLYCODE, "a fault of ours is not deferred in our words")
assert(mt.rcptto(conn, "<ok@example.org>") == nil, "RCPT after a fault")
assert(mt.getreply(conn) == SMFIR_CONTINUE, "a fault of ours spoils the session")
assert(mt.eom(conn) == nil, "end of message")
assert(mt.getreply(conn) == SMFIR_CONTINUE, "the message is not let through")
mt.disconnect(conn)
