"""Webhooks: signed so that the scheme's own library agrees, sent until they arrive, and never to private addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time

import httpcore
import pytest
from receiver import Receiver
from server_process import Server
from standardwebhooks import Webhook

from etd_ds.contract import errors, spec
from service import addresses
from service.client import ServiceError
from service.database import Database
from service.outbox import Delivery, Outbox
from service.settings import Settings
from service.store import Job, Store
from service.webhooks import Sender, sign

SMALL = {"layers": 3, "hidden": 192, "steps": 2}
OPEN = ("--webhook-host", "127.0.0.1", "--webhook-backoff", "0.05")


def test_the_signature_of_the_schemes_own_example():
    """The one that its specification and libraries print."""
    made = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, '{"test": 2432232314}'
    )
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_messages_arrive_signed_and_are_sent_again_until_they_do(server: Server):
    with Receiver(500, 302) as receiver:
        server.start(*OPEN)
        asked = {"webhook": receiver.url, "labels": {"team": "search"}}
        job = server.client.wait(server.client.create(SMALL | asked)["id"])
        messages = [receiver.got() for _ in range(3)]
        verifier = Webhook(server.client.webhook_secret())
        for path, headers, body in messages:
            assert path == "/hook?token=t0ken", "no redirect is followed"
            verifier.verify(body, headers)
            assert (headers["webhook-id"], body) == (messages[0][1]["webhook-id"], messages[0][2])
        told = json.loads(messages[0][2])
        assert (told["type"], told["data"]["id"], told["data"]["status"]) == ("job.succeeded", job["id"], "succeeded")
        assert (told["data"]["labels"], told["data"]["error"]) == ({"team": "search"}, None)
        assert server.client.webhook_secret(new=True) != server.client.webhook_secret(new=True)
        assert server.client.get(job["id"])["webhook"] == receiver.url
        said = server.end()
        assert "500, again in" in said
        assert "t0ken" not in said
        assert receiver.more == 0


def test_whoever_asks_is_told_of_starts_and_checkpoints_too_and_once_by_two_servers(server: Server):
    with Receiver() as receiver:
        server.start(*OPEN)
        other = Server(server.root, OPEN).start()
        try:
            server.behave("trainer", "crash")
            everything = {"webhook": receiver.url, "webhook_events": ["running", "checkpoint", "failed", "cancelled"]}
            server.client.wait(server.client.create(SMALL | everything)["id"])
            failed = [json.loads(receiver.got()[2]) for _ in range(2)]
            assert sorted(one["type"] for one in failed) == ["job.failed", "job.running"]
            assert (
                next(one for one in failed if one["type"] == "job.failed")["data"]["error"]["code"] == "trainer_crashed"
            )
            server.behave("trainer", "")
            server.client.wait(server.client.create(SMALL | everything)["id"])
            trained = [json.loads(receiver.got()[2]) for _ in range(3)]
            assert sorted(one["type"] for one in trained) == ["job.checkpoint", "job.checkpoint", "job.running"]
            steps = [one["data"]["checkpoint"]["step"] for one in trained if one["type"] == "job.checkpoint"]
            assert sorted(steps) == [1, 2]
        finally:
            other.end()
            other.client.close()
        server.end()
        assert receiver.more == 0, "each was sent once"


def test_a_private_address_behind_a_name_is_never_called(server: Server):
    with Receiver() as receiver:
        server.start("--webhook-backoff", "0.05")
        server.client.create(SMALL | {"webhook": f"https://localhost:{receiver.port}/"})
        assert any("not public" in line for line in server.says())
        assert receiver.more == 0


@pytest.mark.parametrize(
    "url",
    ["http://example.org/", "https://127.0.0.1/", "https://[::1]/", "https://10.1.2.3/", "https://169.254.169.254/",
     "https://100.100.100.200/", "https://[::ffff:127.0.0.1]/", "https://user@example.org/", "ftp://example.org/",
     "https:///x", "https://example.org/\r\nX: y", "https://exa mple.org/", "nonsense", "https://example.org:99999/"],
)  # fmt: skip
def test_what_is_no_public_https_address_is_refused_by_name(url: str):
    with pytest.raises(errors.EtdError) as refused:
        addresses.check_url(url, ())
    assert refused.value.field == "webhook"


def test_the_request_is_refused_before_any_work(server: Server):
    server.start()
    for bad in ({"webhook": "https://127.0.0.1/"}, {"webhook_events": ["everything"]}):
        with pytest.raises(ServiceError) as refused:
            server.client.create(SMALL | bad)
        assert (refused.value.status, refused.value.fields) == (422, list(bad))
    assert server.client.list() == []


def test_named_hosts_may_be_private_and_plain():
    addresses.check_url("http://intern.example:8080/hook", {"intern.example"})
    addresses.check_url("https://example.org/hook?a=b", ())


@pytest.mark.parametrize(
    ("address", "public"),
    [("93.184.216.34", True), ("2606:2800:220:1::1", True), ("0.0.0.0", False), ("127.0.0.1", False),
     ("10.0.0.1", False), ("172.16.0.1", False), ("192.168.1.1", False), ("100.64.0.1", False),
     ("169.254.169.254", False), ("168.63.129.16", False), ("224.0.0.1", False), ("240.0.0.1", False), ("::1", False),
     ("::", False), ("fe80::1", False), ("fc00::1", False), ("ff02::1", False), ("::ffff:10.0.0.1", False),
     ("64:ff9b::7f00:1", False), ("64:ff9b::5db8:d822", True), ("2002:7f00:1::", False)],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool):
    assert addresses.is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize("answers", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["fe80::1%eth0"], []])
def test_a_name_is_looked_up_once_and_all_its_addresses_are_checked(answers: list[str]):
    asked = []

    async def connect() -> None:
        async def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
            asked.append(host)
            return [(2, 1, 6, "", (address, port)) for address in answers]

        asyncio.get_running_loop().getaddrinfo = resolve
        await addresses.PublicNetwork(()).connect_tcp("rebinds.example", 443)

    with pytest.raises(httpcore.ConnectError):
        asyncio.run(connect())
    assert asked == ["rebinds.example"]


def test_one_tenants_silent_receivers_delay_no_others_messages(tmp_path, monkeypatch):
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    database.create()
    store, made = Store(database), spec.JobSpec(layers=1, hidden=12)
    for number in range(21):
        name, tenant = f"job-{number}", "quick" if number == 20 else "silent"
        told = {"webhook": f"https://{tenant}/", "webhook_events": "cancelled"}
        store.add(Job(id=name, spec=made, ranks=1, tenant=tenant, created=time.time(), **told))
        store.ask(name, "cancel")
    sender, sent = Sender(Settings(data_dir=tmp_path, tick=0.01), Outbox(database)), asyncio.Event()

    async def post(_pool: object, message: Delivery, _secret: str) -> int:
        if message.tenant == "silent":
            await asyncio.Event().wait()
        sent.set()
        return 200

    async def until_sent() -> None:
        sending = asyncio.create_task(sender.run())
        await asyncio.wait_for(sent.wait(), 30)
        sending.cancel()

    monkeypatch.setattr(sender, "_post", post)
    asyncio.run(until_sent())
    database.close()


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example"])
def test_a_name_that_cannot_be_looked_up_is_an_error_like_any_other(host: str):
    addresses.check_url(f"https://{host}/", ())
    with pytest.raises(httpcore.ConnectError):
        asyncio.run(addresses.PublicNetwork(()).connect_tcp(host, 443))


def test_a_message_is_one_servers_for_a_while_and_then_anybodys(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    database.create()
    store, outbox = Store(database), Outbox(database)
    made = spec.JobSpec(layers=1, hidden=12)
    store.add(Job(id="a", spec=made, ranks=1, created=time.time(), webhook="https://x/", webhook_events="cancelled"))
    store.add(Job(id="b", spec=made, ranks=1, created=time.time()))
    store.add(Job(id="c", spec=made, ranks=1, created=time.time(), webhook="https://x/", webhook_events="checkpoint"))
    assert outbox.watched() == [("c", 0)], "only those who asked for checkpoints are looked at"
    for name in ("a", "b", "a"):
        store.ask(name, "cancel")
    (first,) = outbox.take(10, -1)
    assert (first.job, first.tries, json.loads(first.body)["type"]) == ("a", 1, "job.cancelled")
    (again,) = outbox.take(10, 60)
    assert (again.id, again.tries) == (first.id, 2), "whoever had it has died"
    assert outbox.take(10, 60) == []
    outbox.later(again, -1)
    outbox.done(outbox.take(10, 60)[0])
    assert outbox.waiting() == 0
    secret = outbox.secret("t")
    assert (outbox.secret("t"), outbox.secret("u") != secret) == (secret, True)
    database.close()
