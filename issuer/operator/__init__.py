"""Life of a stock: who moves it when, edits of its quantity, what rolls over into the next round.

life.py       moves: submit, approve, reject, pause, resume, end, close
budget.py     quantity up or down, with current and target value
rollover.py   a round that is over, into the next
shards.py     brings what shards hold up to what the books say; the publisher calls it too
store.py      the books (PostgreSQL); every rule is checked there
"""
