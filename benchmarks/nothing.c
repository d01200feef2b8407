/* A milter on libmilter that does nothing: what any filter of recipients costs at least.

     nothing SOCKET

   It negotiates what rcptd negotiates, so that the same packets travel, and takes every recipient. It is ended by
   SIGKILL: libmilter takes seconds to end by itself. */

#include <libmilter/mfapi.h>
#include <stdio.h>
#include <stdlib.h>

static sfsistat negotiate(SMFICTX *session, unsigned long actions, unsigned long steps, unsigned long unused2,
                          unsigned long unused3, unsigned long *wanted, unsigned long *declined,
                          unsigned long *also2, unsigned long *also3) {
    (void)unused2, (void)unused3;
    if (actions & SMFIF_SETSYMLIST) {
        smfi_setsymlist(session, SMFIM_CONNECT, (char *)"{client_addr}");
        smfi_setsymlist(session, SMFIM_ENVFROM, (char *)"i {auth_authen}");
        smfi_setsymlist(session, SMFIM_ENVRCPT, (char *)"i {rcpt_mailer} {rcpt_addr}");
    }
    *wanted = actions & SMFIF_SETSYMLIST;
    *declined = steps & (SMFIP_NOHELO | SMFIP_NODATA | SMFIP_NOUNKNOWN | SMFIP_NOHDRS | SMFIP_NOEOH | SMFIP_NOBODY |
                         SMFIP_NR_CONN | SMFIP_NR_MAIL);
    *also2 = *also3 = 0;
    return SMFIS_CONTINUE;
}

static sfsistat on_connect(SMFICTX *session, char *name, _SOCK_ADDR *address) {
    (void)session, (void)name, (void)address;
    return SMFIS_NOREPLY;
}

static sfsistat on_mail(SMFICTX *session, char **arguments) {
    (void)session, (void)arguments;
    return SMFIS_NOREPLY;
}

static sfsistat on_recipient(SMFICTX *session, char **arguments) {
    (void)session, (void)arguments;
    return SMFIS_CONTINUE;
}

int main(int words, char **word) {
    struct smfiDesc milter = {
        .xxfi_name = (char *)"nothing",
        .xxfi_version = SMFI_VERSION,
        .xxfi_flags = SMFIF_SETSYMLIST,
        .xxfi_connect = on_connect,
        .xxfi_envfrom = on_mail,
        .xxfi_envrcpt = on_recipient,
        .xxfi_negotiate = negotiate,
    };
    if (words != 2) return 64;
    if (smfi_register(milter) == MI_FAILURE || smfi_setbacklog(1024) == MI_FAILURE) return 70;
    if (smfi_setconn(word[1]) == MI_FAILURE || smfi_opensocket(1) == MI_FAILURE) return 71;
    return smfi_main() == MI_SUCCESS ? 0 : 71;
}
