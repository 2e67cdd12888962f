"""A campaign as data: a YAML file that a clerk writes, read, checked, scaled and loaded.

    read.read_campaign(data)        bytes of a file -> the campaign, or all complaints about it
    scale.scaled(campaign, ...)     one round of it at another size
    load.load(conn, campaign, ...)  into the database, once

complaints, source, kinds, table   how a file is read so that each complaint names its line
model, parse, extras, till, check  what a campaign is, how it is written, which rules it keeps
files/                             campaigns that come with Hanquan
"""
