"""The postmaster of a domain that takes mail is always accepted (RFC 5321 4.5.1)."""

from rcptd.address import Recipient
from rcptd.policy import Policy


def is_postmaster(policy: Policy, recipient: Recipient, *, bare: bool) -> bool:
    """Say whether the recipient is the postmaster of one of our domains, or a `bare` postmaster."""
    return (
        recipient.key.startswith("postmaster")
        and policy.postmaster
        and recipient.local.lower() == "postmaster"
        and (bare or recipient.domain in policy.own)
    )
