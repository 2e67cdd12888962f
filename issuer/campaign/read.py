"""The one door from a campaign file to a campaign."""

import msgspec

from issuer.campaign.check import check
from issuer.campaign.complaints import Complaint
from issuer.campaign.model import Campaign
from issuer.campaign.parse import Parsed, parse


class Refused(msgspec.Struct, frozen=True):
    """A file that is no campaign, with every complaint about it, by line."""

    complaints: tuple[Complaint, ...]


def read_campaign(data: bytes) -> Campaign | Refused:
    """The campaign in a file (YAML, UTF-8), or all that is wrong with it."""
    parsed = parse(data)
    if not isinstance(parsed, Parsed):
        return Refused(parsed)
    complaints = check(parsed)
    return Refused(complaints) if complaints else parsed.campaign
