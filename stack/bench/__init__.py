"""The benches: what issuer and checkout do, beside the limit measured in the same run (docs/results/bench.md).

claim.py      signed single claims against a bare worker that answers a constant
batch.py      the batch endpoint against the script called directly; memory; cost that stays flat
drain.py      the drain against a raw COPY; how far it lags behind the highest rate
checkout.py   signed redemptions against the ledger's function called one a transaction; storage
base.py       what they share

world.py      real stores in a temporary folder, a round to claim from, our services as processes
helper.py     a process of ours that is asked for one thing after another
presign.py    helper: people, their claims, and requests signed before the clock starts
generator.py  helper: sends them over HTTP, on an open or a closed schedule
script.py     helper: the same claims straight through the script
drainer.py    helper: drains, and copies the same rows
filler.py     helper: puts vouchers into the books without anybody having claimed them
tills.py      helper: redemptions of many shops, signed before the clock starts
counter.py    helper: the same redemptions straight through the function, or as bare rows
sales.py      which voucher is used at which shop     market.py  shops, vouchers and sales set up
bare.py       the worker that answers a constant
schedule.py   arrivals and latencies        cpu.py     what processes cost
check.py      was the run right             lag.py     the drain, watched from outside
phases.py     one measured stretch          report.py  what is told
memory.py     of Valkey                     storage.py of PostgreSQL, by relation
"""
