"""Single resources of the API: what GET, PUT, PATCH and DELETE do, ETags and conditions, events and audit of them."""

import json

import pytest
from test_api import ADD, PROBLEM, WEB, House

from fnat.client import _events
from fnat.errors import ChangeError, EngineError, StaleError
from fnat.model import RealServer
from tests.fakes import Conn  # noqa: F401, the house's

NAME = "tcp", "10.0.0.1", 80
V6 = "tcp", "2001:db8::1", 443
WHOLE = {
    "proto": "tcp",
    "vip": "2001:db8::1",
    "vport": 443,
    "scheduler": "rr",
    "servers": [{"rip": "10.1.1.1", "rport": 80, "weight": 3}, {"rip": "2001:db8:1::1", "rport": 80}],
    "lips": [{"addr": "10.2.0.1", "port": "lan"}, {"addr": "2001:db8:2::1", "port": "lan"}],
}


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def test_a_whole_service_is_put_got_and_put_again(house):
    client = house.client
    made = client.put_service(WHOLE, new=True)
    assert made.value["servers"][1] == RealServer(rip="2001:db8:1::1", rport=80).model_dump()
    got = client.get_service(*V6)
    assert got == made
    snapshot = client.status()["snapshot"]
    assert client.put_service(got.value) == got, "what GET gives, PUT takes"
    assert client.status()["snapshot"] == snapshot, "and it changes nothing"
    client.delete_service(*V6, if_match=got.etag)
    with pytest.raises(ChangeError) as gone:
        client.get_service(*V6)
    assert (gone.value.status, gone.value.code) == (404, "FN-1203")


# method, path, body, status of the first and of the second time
WRITES = [
    ("PUT", "/v1/services/tcp/10.0.0.7:80", {}, 201, 200),
    ("PUT", "/v1/services/tcp/%5B2001:DB8::0:1%5D:443", WHOLE, 201, 200),
    ("PUT", "/v1/services/udp/[2001:db8::1]:443", {"quic": True}, 201, 200),
    ("PATCH", "/v1/services/tcp/10.0.0.1:80", {"scheduler": "rr"}, 200, 200),
    ("PATCH", "/v1/services/tcp/10.0.0.1:80", {"servers": []}, 200, 200),
    ("PATCH", "/v1/services/tcp/10.0.0.9:80", {"scheduler": "rr"}, 404, 404),
    ("DELETE", "/v1/services/tcp/10.0.0.1:80", None, 204, 404),
    ("PUT", "/v1/services/tcp/10.0.0.1:80/servers/10.1.1.2:80", {"weight": 4}, 201, 200),
    ("PATCH", "/v1/services/tcp/10.0.0.1:80/servers/10.1.1.1:8080", {"weight": 0}, 200, 200),
    ("DELETE", "/v1/services/tcp/10.0.0.1:80/servers/10.1.1.1:8080", None, 204, 404),
    ("PUT", "/v1/services/tcp/10.0.0.9:80/servers/10.1.1.2:80", {}, 404, 404),
    ("GET", "/v1/services/tcp/10.0.0.1:80/servers", None, 200, 200),
    ("PUT", "/v1/services/tcp/10.0.0.1:80/lips/10.2.0.2", {"port": "lan"}, 201, 200),
    ("PUT", "/v1/services/tcp/10.0.0.1:80/lips/10.2.0.1", {"port": "wan"}, 200, 200),
    ("PUT", "/v1/services/tcp/10.0.0.1:80/lips/10.2.0.2", {"port": "dmz"}, 404, 404),
    ("PUT", "/v1/services/tcp/10.0.0.1:80/lips/10.0.0.1", {"port": "wan"}, 409, 409),
    ("DELETE", "/v1/services/tcp/10.0.0.1:80/lips/10.2.0.1", None, 204, 404),
    ("PUT", "/v1/addresses/10.0.0.5", {"port": "wan"}, 201, 200),
    ("PUT", "/v1/addresses/10.0.0.1", {"port": "lan"}, 200, 200),
    ("PUT", "/v1/addresses/2001:db8::5", {"port": "wan", "plen": 64}, 201, 200),
    ("PUT", "/v1/addresses/10.0.0.5", {"port": "wan", "plen": 64}, 400, 400),
    ("DELETE", "/v1/addresses/10.0.0.1", None, 204, 404),
    ("PUT", "/v1/routes/10.9.0.0/16/0", {"port": "wan"}, 201, 200),
    ("PUT", "/v1/routes/2001:db8:9::/48/10", {"port": "wan", "gateway": "fe80::1"}, 201, 200),
    ("PUT", "/v1/routes/10.9.0.0/16/0", {"port": "wan", "gateway": "fe80::1"}, 400, 400),
    ("DELETE", "/v1/routes/10.9.0.0/16/0", None, 404, 404),
    ("PUT", "/v1/neighbours/wan/10.0.0.3", {"mac": "02:00:00:00:00:01"}, 201, 200),
    ("PUT", "/v1/neighbours/wan/fe80::3", {"mac": "02:00:00:00:00:01"}, 201, 200),
    ("PUT", "/v1/neighbours/dmz/10.0.0.3", {"mac": "02:00:00:00:00:01"}, 404, 404),
    ("PUT", "/v1/ports/wan", {"up": False}, 200, 200),
    ("PATCH", "/v1/ports/wan", {"up": False}, 200, 200),
    ("PUT", "/v1/ports/dmz", {"up": False}, 404, 404),
    ("DELETE", "/v1/ports/wan", None, 405, 405),
    ("PUT", "/v1/services/tcp/10.0.0.7:80", {"color": 1}, 400, 400),
    ("PUT", "/v1/services/tcp/10.0.0.7:80", {"vport": 81}, 400, 400),
    ("PUT", "/v1/services/tcp/10.0.0.7:80", {"quic": True}, 400, 400),
    ("PUT", "/v1/services/tcp/10.0.0.7:80", {"servers": [{"rip": "10.1.1.1", "rport": 1}] * 2}, 400, 400),
    ("PUT", "/v1/services/icmp/10.0.0.7:80", {}, 400, 400),
    ("PUT", "/v1/services/tcp/10.0.0.7", {}, 400, 400),
    ("PUT", "/v1/services/tcp/2001:db8::1", {}, 400, 400),
    ("PUT", "/v1/services/tcp/10.0.0.7:080", {}, 400, 400),
    ("PUT", "/v1/services/tcp/10.0.0.7:80", [], 400, 400),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "first", "second"), WRITES, ids=[f"{r[0]} {r[1]} {r[2]}"[:90] for r in WRITES]
)
def test_a_write_does_what_http_says_and_the_same_again_nothing_more(house, method, path, body, first, second):
    house.client.change(ADD)
    for status in (first, second):
        before = house.control.engine.snapshot
        answer = house.client._http.request(method, path, **({} if body is None else {"json": body}))
        assert answer.status_code == status, answer.text
        if status >= 400:
            assert set(answer.json()) == PROBLEM
        elif status != 204 and not path.endswith("servers"):
            shown = house.client._http.get(path)
            assert shown.json() == answer.json() and shown.headers["etag"] == answer.headers["etag"]
            assert house.client._http.get(path, headers={"If-None-Match": shown.headers["etag"]}).status_code == 304
    assert house.control.engine.snapshot == before, "the second time"


def test_the_field_to_blame_is_named(house):
    answer = house.client._http.put("/v1/services/tcp/10.0.0.1:80", json={"servers": [{"rip": "10.1.1.1", "rport": 0}]})
    assert answer.json()["field"] == "servers.0.rport" and "least is 1" in answer.json()["fix"]
    with pytest.raises(ChangeError) as caught:
        house.client.change([{**ADD[1], "weight": -1}])
    assert caught.value.field == "changes.0.server.add.weight"


# sentence, headers, whether it is there, status of a PUT
CONDITIONS = [
    ("the tag of now", {"If-Match": "NOW"}, True, 200),
    ("one of several tags", {"If-Match": '"x", NOW'}, True, 200),
    ("any", {"If-Match": "*"}, True, 200),
    ("an old tag", {"If-Match": '"x"'}, True, 412),
    ("any, of nothing", {"If-Match": "*"}, False, 412),
    ("only if new, and it is", {"If-None-Match": "*"}, False, 201),
    ("only if new, and it is not", {"If-None-Match": "*"}, True, 412),
    ("not if it is this one", {"If-None-Match": "NOW"}, True, 412),
    ("both hold", {"If-Match": "NOW", "If-None-Match": '"x"'}, True, 200),
]


@pytest.mark.parametrize(("headers", "there", "status"), [r[1:] for r in CONDITIONS], ids=[r[0] for r in CONDITIONS])
def test_conditions(house, headers, there, status):
    now = '"none"'
    if there:
        house.client.change(ADD)
        now = house.client.get_service(*NAME).etag
    headers = {k: v.replace("NOW", now) for k, v in headers.items()}
    answer = house.client._http.put("/v1/services/tcp/10.0.0.1:80", json={"scheduler": "rr"}, headers=headers)
    assert answer.status_code == status, answer.text
    if status == 412:
        assert answer.json()["code"] == "FN-1603"
        assert all(s["scheduler"] == "wrr" for s in house.client.services()), "nothing was changed"


def test_the_slower_of_two_is_told(house):
    house.client.change(ADD)
    mine, yours = house.client.get_service(*NAME), house.client.get_service(*NAME)
    house.client.put_service({**yours.value, "scheduler": "rr"}, if_match=yours.etag)
    with pytest.raises(StaleError):
        house.client.put_service({**mine.value, "conn_timeout": 5}, if_match=mine.etag)
    with pytest.raises(StaleError):
        house.client.delete_service(*NAME, if_match=mine.etag)


def test_a_bulk_has_a_condition_too(house):
    post = house.client._http.post
    tag = post("/v1/changes", json={"changes": [], "dry_run": True}).headers["etag"]
    assert post("/v1/changes", json={"changes": ADD}, headers={"If-Match": tag}).status_code == 200
    assert post("/v1/changes", json={"changes": ADD[:1]}, headers={"If-Match": tag}).status_code == 412


def test_collections_have_tags_that_follow_the_configuration_and_outlive_a_restart(house, tmp_path):
    get = house.client._http.get
    for page in ("/v1/services", "/v1/addresses", "/v1/routes", "/v1/neighbours", "/v1/ports"):
        tag = get(page).headers["etag"]
        assert get(page, headers={"If-None-Match": tag}).status_code == 304, page
    tags = [get("/v1/services").headers["etag"]]
    house.client.change(ADD)
    tags.append(get("/v1/services").headers["etag"])
    house.client.change([{"op": "server.set", "service": WEB, "rip": "10.1.1.1", "rport": 8080, "weight": 7}])
    tags.append(get("/v1/services").headers["etag"])
    assert len(set(tags)) == 3
    again = House(tmp_path, house.plane)
    assert again.client._http.get("/v1/services").headers["etag"] == tags[2]
    again.client.change([{"op": "server.set", "service": WEB, "rip": "10.1.1.1", "rport": 8080, "weight": 1}])
    assert again.client._http.get("/v1/services").headers["etag"] == tags[1], "the same configuration, the same tag"


# ---- audit and events ----


def test_the_audit_log_says_who_what_before_and_after(house):
    house.client.change(ADD)
    house.client.patch_service(*NAME, {"scheduler": "rr"})
    house.client.patch("/v1/services/tcp/10.0.0.1:80/servers/10.1.1.1:8080", {"weight": 0})
    with pytest.raises(ChangeError):
        house.client.delete("/v1/addresses/10.0.0.77")
    house.client.put("/v1/ports/lan", {"up": False})
    made, changed, drained, refused, port = house.client.audit()
    assert (
        made["changed"][0]["before"] is None and made["changed"][0]["after"]["servers"]["10.1.1.1 8080"]["weight"] == 1
    )
    assert changed["what"] == "PATCH /v1/services/tcp/10.0.0.1:80" and changed["who"] == "in-process"
    assert changed["changed"] == [
        {"resource": "service tcp 10.0.0.1:80", "before": {"scheduler": "wrr"}, "after": {"scheduler": "rr"}}
    ]
    (server,) = drained["changed"]
    assert [server[side]["servers"]["10.1.1.1 8080"]["weight"] for side in ("before", "after")] == [1, 0]
    assert (refused["status"], refused["code"]) == (404, "FN-1203") and "changed" not in refused
    assert port["changed"] == [{"resource": "port lan", "before": {"up": True}, "after": {"up": False}}]
    assert house.paths.audit.read_text().count("\n") == 5
    assert house.client.audit(limit=2) == [refused, port]


def test_a_change_that_cannot_be_recorded_is_not_made(house, monkeypatch):
    house.client.change(ADD)

    def full(record):
        raise EngineError("FN-1304", "audit.jsonl: No space left on device", "make room")

    monkeypatch.setattr(house.control.audit, "write", full)
    with pytest.raises(EngineError, match="audit"):
        house.client.patch_service(*NAME, {"scheduler": "rr"})
    assert house.client.services()[0]["scheduler"] == "wrr" and [c["op"] for c in house.overlay()] == [
        c["op"] for c in ADD
    ]


def test_the_audit_log_is_bounded_and_survives_a_torn_line(house, monkeypatch):
    from fnat import audit

    monkeypatch.setattr(audit, "SIZE", 2000)
    for weight in range(100):
        house.client.put("/v1/services/tcp/10.0.0.1:80", {"conn_timeout": weight})
        if weight == 50:
            with house.paths.audit.open("a") as file:
                file.write('{"torn":')
    files = list(house.paths.state_dir.glob("audit.jsonl*"))
    assert len(files) <= audit.FILES and sum(f.stat().st_size for f in files) < audit.FILES * 3000
    records = house.client.audit(limit=10_000)
    assert [r["changed"][0]["after"]["conn_timeout"] for r in records][-5:] == [95, 96, 97, 98, 99]
    assert 20 < len(records) < 100


def test_a_flood_of_notes_is_thinned(house):
    for _ in range(1000):
        house.control.audit.note({"who": "unknown"})
    assert len(house.control.audit.last(10_000)) <= 20


def test_events_follow_changes_and_resume(house):
    events = house.control.events

    def told(last_id):
        place = events.place_of(last_id)
        if place is None:
            return "reset"
        frames, _ = events.since(place)
        return list(_events(iter(b"".join(frames).decode().split("\n"))))

    start = events.start
    house.client.change(ADD)
    house.client.patch_service(*NAME, {"scheduler": "rr"})
    house.client.patch_service(*NAME, {"scheduler": "rr"})  # no change, no event
    first, second = told(f"{start}-0")
    assert first["data"]["resources"] == ["service tcp 10.0.0.1:80", "addr 10.0.0.1"]
    assert second["data"]["who"] == "in-process" and second["data"]["snapshot"] == house.control.engine.snapshot
    assert told(first["id"]) == [second] and told(second["id"]) == []
    for lost in ("other-1", f"{start}-9", f"{start}-x", "", "-", f"{start}--1"):
        assert told(lost) == "reset", lost
    for number in range(1500):
        events.publish("change", {"n": number})
    assert told(second["id"]) == "reset" and len(told(f"{start}-600")) == 902
    assert events.since(5) is None


def test_a_long_record_is_cut(house):
    many = [{"op": "addr.add", "addr": f"10.0.{n // 250}.{n % 250 + 1}", "port": "wan"} for n in range(50)]
    house.client.change(many)
    from fnat import audit

    cut = audit.MOST
    audit.MOST = 10
    try:
        house.client.change([{"op": "addr.flush", "port": "wan"}])
    finally:
        audit.MOST = cut
    record = house.client.audit()[-1]
    assert len(record["changed"]) == 10 and record["omitted"] == 40
    assert len(json.dumps(record)) < 3000
