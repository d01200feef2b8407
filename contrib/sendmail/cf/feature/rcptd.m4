divert(-1)
dnl rcptd.m4 -- Sendmail asks rcptd at RCPT about each recipient of your domains.
dnl
dnl In the .mc, before the MAILER lines:
dnl
dnl   FEATURE(`rcptd', `inet:7850@127.0.0.1')dnl
dnl   RCPTD_DOMAIN(`example.org')dnl
dnl   RCPTD_DOMAIN_FILE(`/etc/mail/rcptd-domains')dnl
dnl
dnl First argument: where rcptd listens, inet:PORT@HOST or local:PATH. No folder
dnl   above PATH may be writable for everybody: Sendmail refuses it then.
dnl Second argument, optional: the domain under which rcptd knows the users of
dnl   this host. Recipients without a domain, and those at any name of this host
dnl   (class w), are asked as user@THAT-DOMAIN, which then counts as yours.
dnl   Without it they are not asked about at all.
dnl Third argument, optional: `all' asks about every recipient of every domain.
dnl   Trouble with rcptd then holds up outgoing mail, too.
dnl
dnl RCPTD_DOMAIN names domains to ask about, RCPTD_DOMAIN_FILE a file with one on
dnl   each line. A subdomain is a domain of its own; an internationalised one is
dnl   written as its A-label (xn--...). The list must agree with the rules of
dnl   rcptd: of a domain that is here and not there, every recipient is refused.
dnl
dnl The map is called "sendmail": rcptd answers to that name with OK OK, with a
dnl value like error:5.1.1:"550 text", with NOTFOUND or with TEMP. On the K line
dnl   -T<TMPF>  tells trouble from NOTFOUND. Without it an outage would read as
dnl             "User unknown", and so it would with -o: never add that.
dnl   -q        keeps the quotes of a quoted local part; without it an address
dnl             with a bracket in it is refused for good when rcptd is in trouble.
dnl   -f        keeps the case of the local part.
dnl   -d15s     how long to wait for an answer; above the deadline of rcptd (6 s).
dnl
dnl White space between the columns of an R line is TAB.
divert(0)dnl
VERSIONID(`rcptd.m4')
divert(-1)
ifelse(defn(`_ARG_'), `', `errprint(`*** ERROR: FEATURE(rcptd) needs to know where rcptd listens, e.g. inet:7850@127.0.0.1
')')
define(`RCPTD_DOMAIN', `PUSHDIVERT(6)C{RcptdDomain}$1
POPDIVERT`'dnl`'')
define(`RCPTD_DOMAIN_FILE', `PUSHDIVERT(6)F{RcptdDomain}$1
POPDIVERT`'dnl`'')

LOCAL_CONFIG
# rcptd: the socket map, and the domains to ask about
Ksendmail socket -d15s -f -q -T<TMPF> _ARG_
ifelse(len(X`'_ARG2_), `1', `dnl', `C{RcptdDomain}_ARG2_')

LOCAL_RULESETS
dnl A refusal ($#error) is passed on; anything else goes on to Sendmail's own
dnl checks, who may relay among them. Never return $#OK here: it skips those.
SLocal_check_rcpt
R$*			$: $1 $| $>Rcptd $1		ask
R$* $| $#$*		$#$2				refused, or deferred
R$* $| $*		$: $1				no objection

SRcptd
R$*			$: $>CanonAddr $1		user < @ domain [.] >
R<@>			$@ OK				the null address
R$* $=O $* < @ $=w . >	$@ $>Rcptd $1 $2 $3		user%domain@this.host
R$* < @ $+ . >		$: $1 < @ $2 >			no dot at the end
ifelse(len(X`'_ARG2_), `1', `dnl', `dnl
R$*			$: <> $1			not yet looked at
R<> $+ < @ $=w >	$: $1 < @ _ARG2_ >		a name of this host
R<> $+ < @ $+ >		$: $1 < @ $2 >			any other domain
R<> $+			$: $1 < @ _ARG2_ >		no domain')
ifelse(_ARG3_, `all', `dnl
R$+ < @ $+ >		$: $2 $| $(sendmail $1@$2 $: <NOTFOUND> $)', `dnl
R$+ < @ $={RcptdDomain} >	$: $2 $| $(sendmail $1@$2 $: <NOTFOUND> $)')
R$* $| OK		$@ OK				good
R$* $| error:$-.$-.$-:$+	$#error $@ $2.$3.$4 $: $5	rcptd says how
R$={RcptdDomain} $| <NOTFOUND>	$#error $@ 5.1.1 $: "550 User unknown"
R$* $| <NOTFOUND>	$@ OK				asked by `all': not ours
R$* $| $*		$#error $@ 4.4.3 $: "451 Recipient cannot be verified now, please try again later"
R$*			$@ OK				not asked: not ours
