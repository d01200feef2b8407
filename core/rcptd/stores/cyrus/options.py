"""The options of imapd.conf(5): which there are, and what each may hold.

Cyrus reads all of its configuration in each of its programs, and a program does not start on a fault in an option that
it never asks for. So all options are here, of the newest release, by the kind of their value; what is not here Cyrus
keeps without a look at it. `DEFAULTS` is only about the options that this job asks for.
"""

from collections.abc import Mapping

CONFIGDIRECTORY = b"{configdirectory}"

DEFAULTS: Mapping[str, bytes | None] = {
    "configdirectory": None,
    "virtdomains": b"off",
    "defaultdomain": b"internal",
    "unixhierarchysep": b"on",
    "postuser": b"",
    "lmtp_downcase_rcpt": b"on",
    "lmtp_over_quota_perm_failure": b"off",
    "deletedprefix": b"DELETED",
    "mboxlist_db": b"twoskip",
    "mboxlist_db_path": b"{configdirectory}/mailboxes.db",
    "quota_db": b"quotalegacy",
    "quota_db_path": b"{configdirectory}/quotas.db",
    "userdeny_db": b"flat",
    "userdeny_db_path": b"{configdirectory}/user_deny.db",
    "cyrusdb_autoconvert": b"off",
    "fulldirhash": b"off",
    "hashimapspool": b"off",
    "quota_use_conversations": b"off",
    "conversations_db": b"skiplist",
    "mboxname_lockpath": None,
    "deleteright": b"c",
    "acl_admin_implies_write": b"off",
    "auth_mech": b"unix",
    "mupdate_server": None,
    "mupdate_config": b"standard",
    "proxyservers": None,
    "auditlog": b"off",
    "debug": b"off",
    "debug_command": None,
    "syslog_prefix": None,
    "syslog_facility": None,
    "umask": b"077",
    "tcp_keepalive": b"off",
    "tcp_keepalive_cnt": b"0",
    "tcp_keepalive_idle": b"0",
    "tcp_keepalive_intvl": b"0",
    "event_notifier": None,
    "event_groups": b"message mailbox",
    "fatals_abort": b"off",
    "defaultpartition": None,
    "sql_engine": None,
    "sql_database": None,
    "sql_hostnames": b"",
    "sql_user": None,
    "sql_passwd": None,
    "sql_usessl": b"off",
    "rcptd_mode": b"faithful",
    "rcptd_shutdown": b"off",
}


def _names(names: str) -> frozenset[str]:
    return frozenset(names.split())


def _by_unit(**units: str) -> dict[str, str]:
    """Map each name to the unit that a bare number of it is in."""
    return {name: unit for unit, names in units.items() for name in names.split()}


def _by_words(*groups: tuple[str, str]) -> dict[str, tuple[str, ...]]:
    """Map each name to the words that it may hold."""
    return {name: tuple(words.split()) for names, words in groups for name in names.split()}


SWITCHES = _names(
    """
    acl_admin_implies_write admins_get_internal_seen allowallsubscribe allowanonymouslogin allowapop allowdeleted
    allownewnews allowplaintext allowsetacl allowspecialusesubfolder allowstarttls allowusermoves altnamespace
    annotation_allow_undefined annotation_callout_disable_append annotation_enable_legacy_commands anyoneuseracl
    anysievefolder archive_enabled archive_keepflagged auditlog autocreate_post autocreate_sieve_script_compile
    autocreate_subscribe_sharedfolders_all autoexpunge autosubscribe_all_sharedfolders backup_keep_previous
    caldav_accept_invalid_rrules caldav_allowattach caldav_allowcalendaradmin caldav_create_attach
    caldav_create_default caldav_create_sched calendar_suppress_duplicate_alarms carddav_allowaddmember
    carddav_allowaddressbookadmin carddav_repair_vcard chatty client_bind conversations conversations_keep_existing
    createonpost crossdomains crossdomains_onlyother cyrusdb_autoconvert debug debug_log_sync_partition_choice
    debug_slowio delete_unsubscribe disable_shared_namespace disable_user_namespace disconnect_on_vanished_mailbox
    duplicatesuppression expire_by_savedate expire_keep_flagged fastmailsharing fatals_abort flushseenstate
    foolstupidclients fulldirhash generate_compiled_sieve_script global_lock hashimapspool httpallowcompress
    httpallowtrace httpcontentmd5 httpprettytelemetry ignorereference imapidresponse imapmagicplus
    improved_mboxlist_sort iolog ischedule_dkim_required jmap_nonstandard_extensions jmap_set_has_attachment
    jmap_vacation jmapsubmission_deleteonsend ldap_referrals ldap_restart ldap_sasl ldap_start_tls ldap_tls_check_peer
    ldap_verify_peer literalminus lmtp_downcase_rcpt lmtp_fuzzy_mailbox_match lmtp_over_quota_perm_failure
    lmtp_preparse lmtp_strict_quota lmtp_strict_rfc2821 loginuseacl logtimestamps mailbox_legacy_dirs
    master_bind_errors_fatal munge8bit object_storage_enabled openio_autocreate popsubfolders popuseacl
    popuseimapflags prometheus_enabled proxy_compress proxyd_allow_status_referral proxyd_disable_mailbox_referrals
    ptskrb5_convert524 ptskrb5_strip_default_realm quota_use_conversations readonly reject8bit replicaonly reverseacls
    reverseuniqueids rfc2046_strict rfc2047_utf8 rfc3028_strict search_fuzzy_always search_index_headers
    search_index_language search_index_parts search_query_language search_skipdiacrit search_skiphtml
    sieve_allowreferrals sieve_mdn_private sieve_sasl_send_unsolicited_capability sieve_use_lmtp_reject
    sieve_utf8fileinto sieveusehomedir singleinstancestore skiplist_always_checkpoint skiplist_unsafe soft_noauth
    specialusealways sql_usessl srs_alwaysrewrite statuscache sync_log sync_log_chain sync_try_imap tcp_keepalive
    telemetry_bysessionid tls_prefer_server_ciphers tls_required unix_group_enable unixhierarchysep username_tolower
    xbackup_enabled
    """
)

INTEGERS = _names(
    """
    autocreate_quota_messages autocreatequotamsg backup_compact_work_threshold boundary_limit caringo_port
    conversations_max_guidexists conversations_max_guidinfolder conversations_max_guidrecords conversations_max_thread
    jmap_max_calendareventnotifs jmap_max_calls_in_request jmap_max_catenate_items jmap_max_concurrent_requests
    jmap_max_concurrent_upload jmap_max_objects_in_get jmap_max_objects_in_set ldap_size_limit ldap_version
    mailbox_default_options mailbox_maxmessages_addressbook mailbox_maxmessages_calendar mailbox_maxmessages_email
    maxheaderlines maxlogins_per_host maxlogins_per_user mupdate_connections_max mupdate_port mupdate_retry_delay
    mupdate_workers_max mupdate_workers_maxspare mupdate_workers_minspare mupdate_workers_start
    partition_select_soft_usage_limit partition_select_usage_reinit poppollpadding quotawarn quotawarnmsg
    quotawarnpercent rss_maxitems rss_maxsynopsis sasl_maximum_layer sasl_minimum_layer search_batchsize
    search_normalisation_max search_queryscan search_snippet_length serverlist_select_soft_usage_limit
    serverlist_select_usage_reinit sieve_maxscripts srs_hashlength sync_batchsize tcp_keepalive_cnt
    uidbatches_max_messages uidbatches_min_batch
    """
)

STRINGS = _names(
    """
    addressbookprefix admins afspts_localrealms afspts_mycell altprefix annotation_callout annotation_db_path
    annotation_definitions aps_topic aps_topic_caldav aps_topic_carddav autocreate_inbox_folders
    autocreate_sieve_compiled_script autocreate_sieve_folders autocreate_sieve_script autocreate_sieve_script_compiled
    autocreate_subscribe_folders autocreate_subscribe_sharedfolders autocreate_users autocreateinboxfolders
    autosievefolders autosubscribeinboxfolders autosubscribesharedfolders backup_db_path backup_staging_path
    caldav_alarm_db_path caldav_alarm_suppress_file caldav_maxdatetime caldav_mindatetime caldav_realm
    calendar_default_displayname calendar_user_address_set calendarprefix carddav_realm caringo_hostname
    client_bind_name commandmintimer configdirectory conversations_counted_flags cyrus_group cyrus_user dav_realm
    davdriveprefix davnotificationsprefix debug_command debug_writefail_guid defaultacl defaultdomain defaultpartition
    defaultsearchtier defaultserver deletedprefix deleteright duplicate_db_path event_exclude_flags
    event_exclude_specialuse event_notifier force_sasl_client_mech http_h2_altsvc http_jwt_key_dir httpallowcors
    httpallowedurls httpdocroot httplogheaders httppts_uri idlesocket imipnotifier implicit_owner_rights
    ischedule_dkim_domain ischedule_dkim_key_file ischedule_dkim_selector jmap_emailsearch_db_path
    jmap_imagesize_annot jmap_inlinedcids_annot jmap_preview_annot jmapaccess_url jmapnotificationfolder
    jmappushsubscriptionfolder jmapsubmissionfolder jmapuploadfolder ldap_authz ldap_base ldap_bind_dn ldap_ca_dir
    ldap_ca_file ldap_ciphers ldap_client_cert ldap_client_key ldap_domain_base_dn ldap_domain_filter
    ldap_domain_name_attribute ldap_domain_result_attribute ldap_filter ldap_group_base ldap_group_filter
    ldap_groupmember_attribute ldap_id ldap_mech ldap_member_attribute ldap_member_base ldap_member_filter
    ldap_password ldap_realm ldap_sasl_authc ldap_sasl_authz ldap_sasl_mech ldap_sasl_password ldap_sasl_realm
    ldap_servers ldap_tls_cacert_dir ldap_tls_cacert_file ldap_tls_cert ldap_tls_ciphers ldap_tls_key ldap_uri
    ldap_user_attribute lmtp_catchall_mailbox lmtp_exclude_specialuse lmtpsocket lock_debugtime loginrealms
    mailbox_initial_flags mailnotifier master_pid_file master_ready_file mboxlist_db_path mboxname_lockpath
    mboxname_userpath mupdate_authname mupdate_password mupdate_realm mupdate_server mupdate_username netscapeurl
    newsgroups newsmaster newspeer newspostuser newsprefix newsrc_db_path notesmailbox notify_external notifysocket
    object_storage_dummy_spool openio_account openio_namespace openio_verbosity partition_select_exclude
    plaintextloginalert postmaster postspec postuser proc_path prometheus_stats_dir proxy_authname proxy_password
    proxy_realm proxyservers ptloader_sock ptscache_db_path quota_db_path restore_authname restore_password
    restore_realm rss_feedlist_template rss_feeds rss_realm search_attachment_extractor_url search_index_skip_domains
    search_index_skip_users search_maxtime search_stopword_path sendmail sendmail_auth_id serverlist servername
    sharedprefix sieve_folder sieve_mdn_original_recipient_header sievedir sievenotifier smtp_auth_authname
    smtp_auth_password smtp_auth_realm smtp_host specialuse_extra specialuse_nochildren specialuse_protect
    sql_database sql_hostnames sql_passwd sql_user srs_domain srs_secrets srs_separator srvtab statuscache_db_path
    submitservers suppress_capabilities sync_authname sync_cache_db_path sync_host sync_log_channels
    sync_log_unsuppressable_channels sync_password sync_port sync_realm sync_rightnow_channel sync_shutdown_file
    syslog_facility syslog_prefix temp_path tls_ca_file tls_ca_path tls_cert_file tls_cipher_list tls_ciphers
    tls_client_ca_dir tls_client_ca_file tls_client_cert tls_client_key tls_crl_file tls_eccurve tls_key_file
    tls_server_ca_dir tls_server_ca_file tls_server_cert tls_server_dhparam tls_server_key tls_sessions_db_path
    tls_versions tlscache_db_path umask userdeny_db_path userprefix virusscan_notification_subject
    virusscan_notification_template webdav_attachments_baseurl zoneinfo_db_path zoneinfo_dir
    """
)

DURATIONS = _by_unit(
    d="""
        aps_expiry archive_after archive_days backup_retention backup_retention_days caldav_historical_age
        conversations_expire_after conversations_expire_days popexpiretime rss_maxage
    """,
    m="""
        calendar_minimum_alarm_interval httptimeout imapidletimeout jmap_querycache_max_age nntptimeout popminpoll
        poptimeout timeout tls_session_timeout websocket_timeout
    """,
    s="""
        client_timeout dav_lock_timeout failedloginpause http_jwt_max_age httpkeepalive imap_inprogress_interval
        imapidlepoll jmap_max_delayed_send jmap_pushpoll ldap_time_limit ldap_timeout lmtptxn_timeout
        openio_proxy_timeout openio_rawx_timeout plaintextloginpause prometheus_master_update_freq
        prometheus_service_update_freq prometheus_update_freq prometheus_usage_update_freq ptscache_timeout
        search_attachment_extractor_idle_timeout search_attachment_extractor_request_timeout
        sieve_duplicate_max_expiration sieve_vacation_max_response sieve_vacation_min_response sync_reconnect_maxwait
        sync_repeat_interval sync_timeout tcp_keepalive_idle tcp_keepalive_intvl
    """,
)

SIZES = _by_unit(
    B="""
        event_content_size icalendar_max_size jmap_preview_length maxargssize maxliteral maxmessagesize maxquoted
        maxword vcard_max_size
    """,
    K="""
        archive_maxsize autocreate_quota autocreatequota backup_compact_maxsize backup_compact_minsize
        jmap_mail_max_size_attachments_per_email jmap_max_size_blob_set jmap_max_size_request jmap_max_size_upload
        quotawarnkb quotawarnsize search_maxsize sieve_maxscriptsize webdav_attachments_max_binary_attach_size
    """,
)

ENUMERATIONS = _by_words(
    ("caldav_allowscheduling", "off on apple"),
    ("delete_mode", "immediate delayed"),
    ("event_content_inclusion_mode", "standard message header body headerbody"),
    ("expunge_mode", "immediate semidelayed delayed"),
    ("mupdate_config", "standard unified replicated"),
    ("qosmarking", "cs0 cs1 cs2 cs3 cs4 cs5 cs6 cs7 af11 af12 af13 af21 af22 af23 af31 af32 af33 af41 af42 af43 ef"),
    ("search_engine", "none squat xapian"),
    ("search_whitespace", "skip merge keep"),
    ("serverinfo", "off min on"),
    ("tls_client_certs", "off optional require"),
    ("uidl_format", "uidonly cyrus dovecot courier"),
    ("virtdomains", "off userid on"),
)

CHOICES = _by_words(
    ("annotation_db mboxkey_db ptscache_db sortcache_db", "skiplist twom twoskip"),
    ("auth_mech", "unix pts krb5 mboxgroups"),
    ("backup_db tlscache_db", "skiplist sql twoskip"),
    ("conversations_db duplicate_db statuscache_db sync_cache_db tls_sessions_db", "skiplist sql twom twoskip"),
    ("ldap_deref", "search find always never"),
    ("ldap_domain_scope ldap_group_scope ldap_member_scope ldap_scope", "sub one base"),
    ("ldap_member_method", "attribute filter"),
    ("mboxlist_db userdeny_db", "flat skiplist sql twom twoskip"),
    (
        "partition_select_mode serverlist_select_mode",
        """
            random freespace-most freespace-percent-most freespace-percent-weighted freespace-percent-weighted-delta
        """,
    ),
    ("prometheus_need_auth", "none user admin"),
    ("pts_module", "afskrb ldap http"),
    ("quota_db", "flat skiplist sql quotalegacy twom twoskip"),
    ("search_indexed_db seenstate_db subscription_db zoneinfo_db", "flat skiplist twom twoskip"),
    ("smtp_backend", "host sendmail"),
    ("sql_engine", "mysql pgsql sqlite"),
)

SETS = _by_words(
    ("caldav_alarm_support_components", "VEVENT VTODO"),
    ("calendar_component_set", "VEVENT VTODO VJOURNAL VFREEBUSY VAVAILABILITY VPOLL"),
    (
        "event_extra_params",
        """
            bodyStructure clientAddress diskUsed flagNames messageContent messageSize messages modseq service
            timestamp uidnext vnd.cmu.midset vnd.cmu.unseenMessages vnd.cmu.envelope vnd.cmu.sessionId
            vnd.cmu.mailboxACL vnd.cmu.mbtype vnd.cmu.davFilename vnd.cmu.davUid vnd.fastmail.clientId
            vnd.fastmail.sessionId vnd.fastmail.convExists vnd.fastmail.convUnseen vnd.fastmail.cid
            vnd.fastmail.counters vnd.fastmail.jmapEmail vnd.fastmail.jmapStates vnd.cmu.emailid vnd.cmu.threadid
            vnd.cmu.visibleUsers vnd.fastmail.traceId
        """,
    ),
    ("event_groups", "message quota flags access mailbox subscription calendar applepushservice jmap"),
    (
        "httpmodules",
        """
            admin caldav carddav convert cgi domainkey freebusy ischedule jmap prometheus rss tzdist webdav
        """,
    ),
    ("metapartition_files", "header index cache expunge squat annotations lock dav archivecache"),
    ("newsaddheaders", "to replyto"),
    (
        "sieve_extensions",
        """
            fileinto reject vacation vacation-seconds notify include envelope environment body relational regex
            subaddress copy date index imap4flags imapflags mailbox mboxmetadata servermetadata variables editheader
            extlists duplicate ihave fcc special-use redirect-dsn redirect-deliverby mailboxid vnd.cyrus.log
            x-cyrus-log vnd.cyrus.jmapquery x-cyrus-jmapquery processcalendar vnd.cyrus.imip snooze vnd.cyrus.snooze
            x-cyrus-snooze vnd.cyrus.implicit_keep_target vnd.cyrus.redirect-multiple
        """,
    ),
)

DEPRECATED = {
    "archive_days": ("archive_after", "3.1.8"),
    "autocreate_sieve_compiled_script": ("autocreate_sieve_script_compiled", "2.5.0"),
    "autocreateinboxfolders": ("autocreate_inbox_folders", "2.5.0"),
    "autocreatequota": ("autocreate_quota", "2.5.0"),
    "autocreatequotamsg": ("autocreate_quota_messages", "2.5.0"),
    "autosievefolders": ("autocreate_sieve_folders", "2.5.0"),
    "autosubscribe_all_sharedfolders": ("autocreate_subscribe_sharedfolders_all", "2.5.0"),
    "autosubscribeinboxfolders": ("autocreate_subscribe_folders", "2.5.0"),
    "autosubscribesharedfolders": ("autocreate_subscribe_sharedfolders", "2.5.0"),
    "backup_compact_maxsize": ("", "3.12.0"),
    "backup_compact_minsize": ("", "3.12.0"),
    "backup_compact_work_threshold": ("", "3.12.0"),
    "backup_db": ("", "3.12.0"),
    "backup_db_path": ("", "3.12.0"),
    "backup_keep_previous": ("", "3.12.0"),
    "backup_retention": ("", "3.12.0"),
    "backup_retention_days": ("", "3.12.0"),
    "backup_staging_path": ("", "3.12.0"),
    "carddav_repair_vcard": ("", "3.3.1"),
    "caringo_hostname": ("", "3.13.3"),
    "caringo_port": ("", "3.13.3"),
    "conversations_expire_days": ("conversations_expire_after", "3.1.8"),
    "createonpost": ("autocreate_post", "2.5.0"),
    "flushseenstate": ("", "2.5.0"),
    "generate_compiled_sieve_script": ("autocreate_sieve_script_compile", "2.5.0"),
    "improved_mboxlist_sort": ("", "3.12.0"),
    "jmap_emailsearch_db_path": ("", "3.6.0"),
    "ldap_sasl_authc": ("ldap_id", "2.5.0"),
    "ldap_sasl_authz": ("ldap_authz", "2.5.0"),
    "ldap_sasl_mech": ("ldap_mech", "2.5.0"),
    "ldap_sasl_password": ("ldap_password", "2.5.0"),
    "ldap_sasl_realm": ("ldap_realm", "2.5.0"),
    "ldap_servers": ("ldap_uri", "2.5.0"),
    "ldap_tls_cacert_dir": ("ldap_ca_dir", "2.5.0"),
    "ldap_tls_cacert_file": ("ldap_ca_file", "2.5.0"),
    "ldap_tls_cert": ("ldap_client_cert", "2.5.0"),
    "ldap_tls_check_peer": ("ldap_verify_peer", "2.5.0"),
    "ldap_tls_ciphers": ("ldap_ciphers", "2.5.0"),
    "ldap_tls_key": ("ldap_client_key", "2.5.0"),
    "mboxkey_db": ("", "the next release"),
    "newsaddheaders": ("", "the next release"),
    "newsgroups": ("", "the next release"),
    "newsmaster": ("", "the next release"),
    "newspeer": ("", "the next release"),
    "newspostuser": ("", "the next release"),
    "newsprefix": ("", "the next release"),
    "newsrc_db_path": ("", "the next release"),
    "nntptimeout": ("", "the next release"),
    "object_storage_dummy_spool": ("", "3.13.3"),
    "object_storage_enabled": ("", "3.13.3"),
    "openio_account": ("", "3.13.3"),
    "openio_autocreate": ("", "3.13.3"),
    "openio_namespace": ("", "3.13.3"),
    "openio_proxy_timeout": ("", "3.13.3"),
    "openio_rawx_timeout": ("", "3.13.3"),
    "openio_verbosity": ("", "3.13.3"),
    "postspec": ("", "3.13.1"),
    "prometheus_update_freq": ("prometheus_service_update_freq", "3.12.0"),
    "quotawarn": ("quotawarnpercent", "3.8.0"),
    "quotawarnkb": ("quotawarnsize", "3.8.0"),
    "restore_authname": ("", "3.13.5"),
    "restore_password": ("", "3.13.5"),
    "restore_realm": ("", "3.13.5"),
    "reverseuniqueids": ("", "3.6.0"),
    "search_index_parts": ("", "3.2.1"),
    "search_query_language": ("", "3.3.0"),
    "sieve_sasl_send_unsolicited_capability": ("", "3.12.0"),
    "sortcache_db": ("", "3.13.1"),
    "srvtab": ("", "3.12.0"),
    "tls_ca_file": ("tls_client_ca_file", "2.5.0"),
    "tls_ca_path": ("tls_client_ca_dir", "2.5.0"),
    "tls_cert_file": ("tls_server_cert", "2.5.0"),
    "tls_cipher_list": ("tls_ciphers", "2.5.0"),
    "tls_key_file": ("tls_server_key", "2.5.0"),
    "tls_server_dhparam": ("", "3.13.1"),
    "tlscache_db": ("tls_sessions_db", "2.5.0"),
    "tlscache_db_path": ("tls_sessions_db_path", "2.5.0"),
    "xbackup_enabled": ("", "3.12.0"),
}

# Ours, in the same file: Cyrus keeps what it does not know without a word.
OWN_SWITCHES = frozenset({"rcptd_shutdown"})
OWN_WORDS = {"rcptd_mode": ("faithful", "strict")}

OWN = OWN_SWITCHES.union(OWN_WORDS)
KNOWN = SWITCHES.union(INTEGERS, STRINGS, DURATIONS, SIZES, ENUMERATIONS, CHOICES, SETS)
