"""The memo: what services said before, in front of every store that waits.

`remembering.Remembering` is a service that asks another one only where nothing that it remembers still counts;
`lifetimes` has how long that is, `entries` the bounded memory, `vanish` the guard against lists that come out
empty, `file` what survives a restart.
"""
