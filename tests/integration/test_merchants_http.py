"""What a merchant may ask over HTTP: how it stands, and a new key for its till."""

import base64
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import aiohttp
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import kernel.keyring
import sql
from kernel.clock import ManualClock, rfc3339
from kernel.errors import Code
from kernel.keyring import Keyring
from kernel.postgres import listening, open_pool
from kernel.signing import Algorithm, Signer
from kernel.web import KEYRING, new_app, serving
from redemption.handlers import READERS
from redemption.merchants import keys as key_desk
from redemption.merchants.handlers import add_routes
from redemption.merchants.keys import KeyMaterial, public_key_material, text_of_proof
from redemption.merchants.standing import Subject, resume, suspend
from stack.enrol import new_key
from tests import stores
from tests.city import MASTER_KEY, Reply, assert_problem, rsa_key
from tests.merchant_world import NOW, at, let_in, name

M1 = "M000001"
WEEK = timedelta(days=7)


@cache
def small_key() -> RSAPrivateKey:
    """A key of the wrong size."""
    return generate_private_key(public_exponent=65_537, key_size=1_024)


def pem(key: RSAPrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@dataclass
class Service:
    """A service with the merchants' addresses, and the first merchant's till T1."""

    database: stores.Database
    clock: ManualClock
    keyring: Keyring
    session: aiohttp.ClientSession
    url: str
    signer: Signer

    async def call(self, method: str, path: str, body: object = None, signer: Signer | None = None) -> Reply:
        """One signed request."""
        data = b"" if body is None else json.dumps(body).encode()
        stamp = int(self.clock.now().timestamp())
        sign = (signer or self.signer).authorization
        headers = {"Authorization": sign(method, path, data, timestamp_s=stamp, nonce=secrets.token_hex(8))}
        async with self.session.request(method, self.url + path, data=data or None, headers=headers) as answer:
            return Reply(answer.status, await answer.read(), answer.headers.copy())

    async def rotate(self, new: RSAPrivateKey, signer: Signer | None = None, **changes: Any) -> Reply:
        """A merchant's request for a new key, as it should be but for the changes."""
        who = signer or self.signer
        key = public_key_material(pem(new).encode())
        serial_no = key.serial_no if isinstance(key, KeyMaterial) else "0" * 40
        text = text_of_proof(who.holder_id, who.serial_no, serial_no)
        proof = base64.b64encode(new.sign(text, PKCS1v15(), SHA256())).decode()
        return await self.call("POST", "/v1/keys:rotate", {"public_key": pem(new), "proof": proof} | changes, who)


def till(new: RSAPrivateKey, reply: Reply) -> Signer:
    """Whoever signs with a key that was registered."""
    return Signer(holder_id=M1, serial_no=reply.json["serial_no"], algorithm=Algorithm.RSA, secret=new)


@pytest.fixture
async def service(database: stores.Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setattr(kernel.keyring, "RELOAD_EVERY_S", 3_600.0)  # it hears of changes, or never
    await let_in(database)
    made = new_key(MASTER_KEY, "merchant", M1, Algorithm.HMAC)
    material = KeyMaterial(serial_no=made.signer.serial_no, algorithm=Algorithm.HMAC, material=made.material)
    async with at(database) as office:
        await key_desk.issue(office, M1, "T1", material)
    pool = await open_pool(database.dsn("hanquan_redemption"), size=2)

    async def rows() -> list[dict[str, Any]]:
        return [dict(row) for row in await pool.fetch(sql.load("keys")["api_keys"])]

    clock = ManualClock(NOW)
    keyring, app = Keyring(rows, MASTER_KEY, clock), new_app(clock)
    app[KEYRING], app[READERS] = keyring, pool
    add_routes(app)
    async with (
        keyring.kept_fresh(),
        listening(database.dsn("hanquan_redemption"), "hanquan_merchant", keyring.wake.set),
        serving(app, "127.0.0.1", [0]) as [port],
        aiohttp.ClientSession() as session,
    ):
        yield Service(database, clock, keyring, session, f"http://127.0.0.1:{port}", made.signer)
    await pool.close()


async def test_a_merchant_sees_how_it_stands(service: Service) -> None:
    reply = await service.call("GET", "/v1/merchant")
    assert reply.status == 200
    until = rfc3339(NOW + key_desk.KEY_LIFE)
    since = rfc3339(NOW - timedelta(minutes=5))
    key = {"serial_no": service.signer.serial_no, "algorithm": "HMAC-SHA256", "not_before": since, "not_after": until}
    assert reply.json == {
        "merchant_id": M1,
        "name": name(1),
        "category": "dining",
        "district": "Jianghan",
        "standing": "ACTIVE",
        "suspended_until": None,
        "suspended_why": None,
        "terminal_id": "T1",
        "stores": [
            {
                "store_id": "S01",
                "name": "Jianghan Road",
                "district": "Jianghan",
                "address": "118 Jianghan Road",
                "category": "dining",
                "standing": "ACTIVE",
            }
        ],
        "terminals": [
            {"terminal_id": "T1", "store_id": "S01", "standing": "ACTIVE", "keys": [key]},
            {"terminal_id": "T2", "store_id": "S01", "standing": "ACTIVE", "keys": []},
        ],
    }
    async with at(service.database) as office:
        await suspend(office, Subject(merchant_id=M1), "odd refunds", NOW + WEEK)
        shown = (await service.call("GET", "/v1/merchant")).json
        assert shown["standing"] == "SUSPENDED"
        assert (shown["suspended_why"], shown["suspended_until"]) == ("odd refunds", rfc3339(NOW + WEEK))
        assert_problem(await service.rotate(rsa_key()), Code.RULE_LIMIT, "SUSPENDED")
        await resume(office, Subject(merchant_id=M1))
        assert (await service.call("GET", "/v1/merchant")).json["standing"] == "ACTIVE"


async def test_a_merchant_rotates_its_key_by_itself(service: Service) -> None:
    new = rsa_key()
    reply = await service.rotate(new)
    assert reply.status == 200, reply
    assert reply.json["old_not_after"] == rfc3339(NOW + WEEK)
    again = await service.rotate(new)
    assert (again.body, again.headers.get("Idempotent-Replayed")) == (reply.body, "true")
    signer = till(new, reply)
    await service.keyring.reload()
    for who in (service.signer, signer):
        [first, _] = (await service.call("GET", "/v1/merchant", signer=who)).json["terminals"]
        assert {key["serial_no"] for key in first["keys"]} == {service.signer.serial_no, signer.serial_no}
    service.clock.set(NOW + WEEK)
    assert_problem(await service.call("GET", "/v1/merchant"), Code.SIGN_ERROR)
    assert (await service.call("GET", "/v1/merchant", signer=signer)).status == 200


async def test_a_key_that_cannot_be_right_is_refused_and_nothing_changes(service: Service) -> None:
    count = "SELECT count(*) FROM api_key"
    before = await service.database.pool.fetchval(count)
    for reply, pointer in (
        (await service.rotate(small_key()), "public_key"),
        (await service.rotate(rsa_key(), public_key="-----BEGIN"), "public_key"),
        (await service.rotate(rsa_key(), proof="AAAA"), "proof"),
        (await service.rotate(rsa_key(), proof="*"), "proof"),
        (await service.rotate(rsa_key(), public_key="x" * 5_000), None),
        (await service.rotate(rsa_key(), more=1), None),
    ):
        assert reply.status in (400, 413), reply
        assert pointer is None or reply.json["pointer"] == pointer
    stranger = msgspec.structs.replace(service.signer, holder_id="M000002")
    assert_problem(await service.rotate(rsa_key(), stranger), Code.SIGN_ERROR)
    assert await service.database.pool.fetchval(count) == before


async def test_a_key_of_another_till_is_taken_and_a_third_key_waits(service: Service) -> None:
    other = new_key(MASTER_KEY, "merchant", M1, Algorithm.HMAC)
    material = KeyMaterial(serial_no=other.signer.serial_no, algorithm=Algorithm.HMAC, material=other.material)
    async with at(service.database) as office:
        await key_desk.issue(office, M1, "T2", material)
    await service.keyring.reload()
    reply = await service.rotate(rsa_key())
    assert_problem(await service.rotate(rsa_key(), other.signer), Code.RULE_LIMIT, "KEY_TAKEN")
    await service.keyring.reload()
    assert_problem(await service.rotate(third_key(), till(rsa_key(), reply)), Code.RULE_LIMIT, "HAS_KEY")


async def test_a_revoked_key_is_refused_at_once(service: Service) -> None:
    async with at(service.database) as office:
        await key_desk.revoke(office, service.signer.serial_no, "stolen")
    for _ in range(200):
        if (await service.call("GET", "/v1/merchant")).status != 200:
            break
    assert_problem(await service.call("GET", "/v1/merchant"), Code.SIGN_ERROR)


@cache
def third_key() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65_537, key_size=2_048)
