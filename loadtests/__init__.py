"""Load tests, written as a partner's engineer would: HTTP only, and nothing of Hanquan's own code.

What is where:

    noon_rush.py    the Locust file: everyone presses the button at noon
    audit.py        what the clients can see for themselves afterwards

    plan.py         the file that says whom to ask, with which keys, and when
    signing.py      signs requests as the API guide says
    wall.py         how many people are there when, and when each of them presses
    citizen.py      what one person wants and does
    turns.py        waiting for a free connection
    answer.py       what an HTTP answer means to a client
    client_log.py   everything that the clients were told, line by line
    asking.py       asks what became of a claim
    latency.py      a histogram
"""
