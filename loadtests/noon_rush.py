"""Locust: everyone presses the button at noon. README.md beside this file tells how to run it."""

import gc
import logging
import os
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gevent
import msgspec
from geventhttpclient.client import HTTPClientPool
from locust import FastHttpUser, LoadTestShape, constant, events, task
from locust.runners import MasterRunner, WorkerRunner

from loadtests.answer import Answer, read_answer
from loadtests.citizen import Citizen, Life, Story, make_citizen
from loadtests.client_log import GRANTED, UNKNOWN, ClientLog, Line
from loadtests.latency import Histogram
from loadtests.plan import Plan, PlanError, read_plan
from loadtests.signing import Signer
from loadtests.turns import Turns
from loadtests.wall import Wall

PATH = "/v1/claims"
TIMEOUT_S = 10.0
GRACE_S = 20
"""How long stories that are under way at the end may still take."""
FAULTS = {"SIGN_ERROR", "PARAM_ERROR", "RESOURCE_NOT_EXISTS", "BODY_TOO_LARGE", "METHOD_NOT_ALLOWED"}
"""Refusals that this client must never get: its own mistakes."""


class Rush:
    """What one process of the run knows and keeps."""

    def __init__(self, plan: Plan, client_logs: Path) -> None:
        self.plan = plan
        self.wall = Wall(citizens=plan.citizens, seconds=plan.seconds)
        self.signers = {partner.partner_id: Signer(partner) for partner in plan.partners}
        self.called, self.pressed = Histogram(), Histogram()
        self.reports: dict[str, Mapping[str, Any]] = {}
        self.log: ClientLog | None = None
        self.share, self.of = 0, 1
        self.turns = Turns(plan.connections)
        """For a free connection. Signing comes after the wait: thousands who sign at once would stop the loop."""
        self._client_logs = client_logs
        self._noon = time.monotonic() - time.time() + (plan.noon_ms - plan.clock_ahead_ms) / 1000
        self._started = 0

    def now_s(self) -> float:
        """Seconds after noon."""
        return time.monotonic() - self._noon

    def timestamp_s(self) -> int:
        """The server's time, as far as we know it."""
        return (time.time_ns() // 1_000_000 + self.plan.clock_ahead_ms) // 1000

    def next_citizen(self) -> Citizen | None:
        """The next of this process's share of the citizens; early birds come first."""
        number = self.share + self._started * self.of
        self._started += 1
        return make_citizen(self.plan, number) if number < self.plan.citizens else None

    def open_log(self) -> None:
        """Opens this process's client log."""
        if self.log is None:
            self.log = ClientLog(self._client_logs / f"told-{self.plan.run_id}-{os.getpid()}.jsonl")

    def write(self, line: Line) -> None:
        """Remembers what a client was told."""
        if self.log is None:
            raise RuntimeError("a client was told something before its log was open")
        self.log.add(line)
        if line.outcome != UNKNOWN:
            self.called.add(line.called_ms)
            self.pressed.add(line.pressed_ms)

    def flush(self) -> None:
        """Writes what the log still holds."""
        if self.log is not None:
            self.log.flush()

    def to_send(self) -> dict[str, Mapping[str, float]]:
        """Both histograms, for the process that prints them."""
        return {"called": self.called.to_send(), "pressed": self.pressed.to_send()}


class Phone(FastHttpUser):
    """A citizen with the app open. Connections are the platform's and shared."""

    wait_time = constant(3_600)  # who has pressed puts the phone away
    network_timeout = TIMEOUT_S
    connection_timeout = TIMEOUT_S

    @task
    def noon(self) -> None:
        """One person's story."""
        environment: Any = self.environment
        rush: Rush = environment.rush
        citizen = rush.next_citizen()
        if citizen is None:
            return
        ask = Teller(self, rush, citizen).ask
        Story(citizen, rush.plan.run_id, Life(ask, rush.now_s, gevent.sleep, _together)).play()


class Teller:
    """Sends one citizen's claims and writes down what came back."""

    def __init__(self, phone: Phone, rush: Rush, citizen: Citizen) -> None:
        self._phone = phone
        self._rush = rush
        self._citizen = citizen

    def ask(self, stock_id: str, number: str, due_s: float) -> Answer:
        """One signed POST /v1/claims. Its line is written also when this greenlet is killed meanwhile."""
        with self._rush.turns:
            answer, started_s = Answer(status=0), self._rush.now_s()
            try:
                answer = self._post(stock_id, number)
            finally:
                self._write(stock_id, number, answer, started_s, min(due_s, started_s))
        return answer

    def _post(self, stock_id: str, number: str) -> Answer:
        citizen, rush = self._citizen, self._rush
        claim = {
            "out_request_no": number,
            "stock_id": stock_id,
            "person_token": citizen.person_token,
            "device_token": citizen.device_token,
        }
        body = msgspec.json.encode(claim)
        signer = rush.signers[citizen.partner.partner_id]
        headers = {
            "Authorization": signer.header("POST", PATH, body, rush.timestamp_s()),
            "Content-Type": "application/json",
        }
        client: Any = self._phone.client  # its types know no bytes
        with client.post(PATH, data=body, headers=headers, catch_response=True) as response:
            answer = read_answer(response.status_code or 0, response.content or b"", response.headers or {})
            if answer.status == 0 or answer.status >= 500 or answer.code in FAULTS:
                response.failure(answer.code or f"status {answer.status}")
            else:
                response.success()  # a refusal is an answer, too
        return answer

    def _write(self, stock_id: str, number: str, answer: Answer, started_s: float, due_s: float) -> None:
        now_s = self._rush.now_s()
        self._rush.write(
            Line(
                outcome=GRANTED if answer.voucher_code else answer.code or UNKNOWN,
                partner_id=self._citizen.partner.partner_id,
                person_token=self._citizen.person_token,
                stock_id=stock_id,
                out_request_no=number,
                voucher_code=answer.voucher_code,
                at_ms=time.time_ns() // 1_000_000,
                called_ms=round((now_s - started_s) * 1000, 2),
                pressed_ms=round((now_s - due_s) * 1000, 2),
            )
        )


class Noon(LoadTestShape):
    """Asked every second how many people there should be."""

    def tick(self) -> tuple[int, float] | None:
        """(people, how many may come a second): all of them at once."""
        runner: Any = self.runner
        rush: Rush = runner.environment.rush
        people = rush.wall.people_at(rush.now_s())
        if people == 0 and (runner.user_count == 0 or rush.now_s() > rush.plan.seconds + GRACE_S):
            return None
        whole = -(-people // rush.of) * rush.of  # Locust deals evenly; so every process can start its share
        return whole, float(rush.plan.citizens)


def _together(calls: Sequence[Callable[[], Answer]]) -> list[Answer]:
    greenlets = [gevent.spawn(call) for call in calls]
    try:
        gevent.joinall(greenlets)
    finally:
        gevent.killall(greenlets)
    return [greenlet.value or Answer(status=0) for greenlet in greenlets]


# ---------------------------------------------------------------- what Locust tells us


def add_options(parser: ArgumentParser, **_: object) -> None:
    """--plan and --client-logs; the environment may say them, too."""
    option: Any = parser.add_argument
    option("--plan", env_var="NOON_PLAN", default="plan.json", help="JSON file of the run; loadtests/README.md")
    option("--client-logs", env_var="NOON_CLIENT_LOGS", default=".", help="folder for what the clients were told")


def begin(environment: Any, **_: object) -> None:
    """Every process reads the plan; those that play citizens open a log. Ends the process when it cannot."""
    options, runner, told = environment.parsed_options, environment.runner, environment.events
    try:
        rush = environment.rush = Rush(read_plan(Path(options.plan)), Path(options.client_logs))
    except PlanError as error:
        raise SystemExit(f"noon_rush: {error}") from None
    environment.host = rush.plan.base_url
    environment.stop_timeout = environment.stop_timeout or GRACE_S
    Phone.client_pool = HTTPClientPool(concurrency=rush.plan.connections)
    told.quit.add_listener(lambda **_: _print_latencies(runner, rush))
    if isinstance(runner, MasterRunner):
        rush.of = options.expect_workers
        told.test_start.add_listener(lambda **_: _deal(runner, rush))
        told.worker_report.add_listener(lambda client_id, data: rush.reports.update({client_id: data["noon"]}))
        return
    gc.set_threshold(50_000, 20, 10_000)  # a full collection over thousands of users stops all of them for 0.3 s
    rush.open_log()
    told.quitting.add_listener(lambda **_: rush.flush())
    if isinstance(runner, WorkerRunner):
        runner.register_message("share", _take_share)
        told.report_to_master.add_listener(lambda client_id, data: data.update(noon=rush.to_send()))


def _deal(runner: MasterRunner, rush: Rush) -> None:
    """Tells every worker which citizens are its own."""
    workers = sorted(runner.clients.keys())
    rush.of = len(workers)
    for share, worker in enumerate(workers):
        runner.send_message("share", {"share": share, "of": len(workers)}, worker)


def _take_share(environment: Any, msg: Any, **_: object) -> None:
    environment.rush.share, environment.rush.of = msg.data["share"], msg.data["of"]


def _print_latencies(runner: object, rush: Rush) -> None:
    """After Locust's own tables; its percentiles count from the call only."""
    if isinstance(runner, WorkerRunner):
        return
    for sent in rush.reports.values():
        rush.called.merge(sent["called"])
        rush.pressed.merge(sent["pressed"])
    say = logging.getLogger("locust.stats_logger").info
    say(f"{'Answers, latency in ms':<34}{'#':>8}{'p50':>10}{'p99':>10}{'max':>10}")
    for name, one in (("counted from the call", rush.called), ("counted from the scheduled press", rush.pressed)):
        figures = "".join(f"{figure:>10.1f}" for figure in one.summary_ms().values())
        say(f"{name:<34}{one.count:>8}{figures}")


_hooks: Any = events
_hooks.init_command_line_parser.add_listener(add_options)
_hooks.init.add_listener(begin)
