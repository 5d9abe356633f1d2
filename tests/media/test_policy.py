"""Tables of URL spellings and what the policy makes of them; nothing here touches a network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from appliance.errors import ApplianceError
from appliance.media.address import is_public
from appliance.media.domains import read_domain
from appliance.media.policy import (
    LONGEST_URL,
    MediaPolicy,
    Target,
    check_addresses,
    read_redirect,
)
from tests.media.policies import check_url, media_policy

PUBLIC = "93.184.215.14"
NAMES = {
    "example.org": [PUBLIC],
    "cdn.example.org": [PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c"],
    "a.b.cdn.example.org": [PUBLIC],
    "bücher.example".encode("idna").decode(): [PUBLIC],
    "xn--strae-oqa.example": [PUBLIC],
    "my_bucket.example.org": [PUBLIC],
    "1and1.example.org": [PUBLIC],
    "other.net": [PUBLIC],
    "nat64.example.org": ["64:ff9b::5db8:d70e"],
    "mapped.example.org": [f"::ffff:{PUBLIC}"],
    "loopback.example.org": ["127.0.0.1"],
    "loopback6.example.org": ["::1"],
    "private.example.org": ["10.1.2.3"],
    "metadata.example.org": ["169.254.169.254"],
    "mixed.example.org": [PUBLIC, "192.168.0.1"],
    "mixed6.example.org": ["2606:2800:21f::1", "fd00::1"],
    "last.example.org": [PUBLIC, PUBLIC, "93.184.215.15", "127.0.0.1"],
    "odd.example.org": ["no address"],
    "zone.example.org": ["fe80::1%eth0"],
    "nothing.example.org": [],
    "localhost": ["127.0.0.1"],
    "intranet": ["10.0.0.1"],
}
LISTED = media_policy(
    allowed_domains=(
        "example.org",
        "*.example.org",
        "Shop.Example.NET.",
        "ports.test:8443",
        "any.test:*",
        "bücher.example",
        "straße.example",
        "93.184.215.14",
        "[2606:2800:21f:cb07:6820:80da:af6b:8b2c]",
    )
)
OPEN = media_policy(allowed_domains=("*",))
ANY_PORT = media_policy(allowed_domains=("*:*",))
PARAM = "messages[0].content[1].image_url.url"


def resolve(host: str) -> Iterable[str]:
    if host in ("shop.example.net", "ports.test", "any.test"):
        return [PUBLIC]
    if host not in NAMES:
        raise OSError(f"no such name: {host}")
    return NAMES[host]


def check(url: str, policy: MediaPolicy) -> Target:
    return check_url(url, policy, resolve, param=PARAM)


def refused(url: str, policy: MediaPolicy) -> ApplianceError:
    with pytest.raises(ApplianceError) as caught:
        check(url, policy)
    assert caught.value.param == PARAM
    return caught.value


ACCEPTED = [
    ("https://example.org/a.png", "https", "example.org", 443, "/a.png"),
    ("http://example.org/a.png", "http", "example.org", 80, "/a.png"),
    ("HTTPS://EXAMPLE.ORG/A.PNG", "https", "example.org", 443, "/A.PNG"),
    ("hTtP://eXample.Org", "http", "example.org", 80, "/"),
    ("https://example.org", "https", "example.org", 443, "/"),
    ("https://example.org?x=1", "https", "example.org", 443, "/?x=1"),
    ("https://example.org#part", "https", "example.org", 443, "/"),
    ("https://example.org/a?b=c&d=%2F#part", "https", "example.org", 443, "/a?b=c&d=%2F"),
    ("https://example.org./a", "https", "example.org", 443, "/a"),
    ("https://example.org:443/a", "https", "example.org", 443, "/a"),
    ("http://example.org:80/a", "http", "example.org", 80, "/a"),
    ("https://cdn.example.org/a", "https", "cdn.example.org", 443, "/a"),
    ("https://a.b.cdn.example.org/a", "https", "a.b.cdn.example.org", 443, "/a"),
    ("https://my_bucket.example.org/a", "https", "my_bucket.example.org", 443, "/a"),
    ("https://1and1.example.org/a", "https", "1and1.example.org", 443, "/a"),
    ("https://shop.example.net/a", "https", "shop.example.net", 443, "/a"),
    ("https://ports.test:8443/a", "https", "ports.test", 8443, "/a"),
    ("http://ports.test:8443/a", "http", "ports.test", 8443, "/a"),
    ("https://any.test:1/a", "https", "any.test", 1, "/a"),
    ("https://any.test:65535/a", "https", "any.test", 65535, "/a"),
    ("https://bücher.example/a", "https", "xn--bcher-kva.example", 443, "/a"),
    ("https://BÜCHER.example/a", "https", "xn--bcher-kva.example", 443, "/a"),
    ("https://bu\u0308cher.example/a", "https", "xn--bcher-kva.example", 443, "/a"),
    ("https://xn--bcher-kva.example/a", "https", "xn--bcher-kva.example", 443, "/a"),
    ("https://XN--BCHER-KVA.EXAMPLE/a", "https", "xn--bcher-kva.example", 443, "/a"),
    ("https://straße.example/a", "https", "xn--strae-oqa.example", 443, "/a"),
    ("https://ｅｘａｍｐｌｅ.org/a", "https", "example.org", 443, "/a"),
    ("https://example。org/a", "https", "example.org", 443, "/a"),
    ("https://cdn．example.org/a", "https", "cdn.example.org", 443, "/a"),
    ("https://example.org/ä/ö?q=ü", "https", "example.org", 443, "/%C3%A4/%C3%B6?q=%C3%BC"),
    ('https://example.org/a"b<c>', "https", "example.org", 443, "/a%22b%3Cc%3E"),
    ("https://example.org//evil.net/", "https", "example.org", 443, "//evil.net/"),
    ("https://example.org/@evil.net/", "https", "example.org", 443, "/@evil.net/"),
    ("https://example.org/..%2f..", "https", "example.org", 443, "/..%2f.."),
    (f"https://{PUBLIC}/a", "https", PUBLIC, 443, "/a"),
    (
        "https://[2606:2800:021F:CB07:6820:80da:af6b:8b2c]/a",
        "https",
        "2606:2800:21f:cb07:6820:80da:af6b:8b2c",
        443,
        "/a",
    ),
    ("https://nat64.example.org/a", "https", "nat64.example.org", 443, "/a"),
    ("https://mapped.example.org/a", "https", "mapped.example.org", 443, "/a"),
]


@pytest.mark.parametrize(("url", "scheme", "host", "port", "path"), ACCEPTED)
def test_an_allowed_url_becomes_its_target(
    url: str, scheme: str, host: str, port: int, path: str
) -> None:
    target = check(url, LISTED)
    assert (target.scheme, target.host, target.port, target.path) == (scheme, host, port, path)
    literal = host in (PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    assert list(target.addresses) == ([host] if literal else list(resolve(host)))


SPELLINGS = [  # refused whatever is listed, so each is tried with every host and port allowed
    # no host, no scheme
    "", "example.org", "example.org/a.png", "//example.org/a", "/etc/passwd", "a.png", ":", "://",
    "https:", "https:/", "https://", "https:///", "https:example.org", "https:/example.org",
    "https:///example.org/a", "https:////example.org", "https://?a", "https://#a", "https://:443/",
    "https://./", "https://../a", "https://.example.org/", "https://example..org/",
    "https://example.org../",
    # other schemes
    "ftp://example.org/a", "gopher://example.org/", "javascript:alert(1)", "blob:x", "about:blank",
    "ws://example.org/", "wss://example.org/", "jar:https://example.org/", "s3://bucket/a",
    "file:///etc/passwd", "file:/etc/passwd", "FILE:///etc/passwd", "file://example.org/a",
    "unix:///run/docker.sock", "dict://example.org/", "http+unix://x/", "httpss://example.org/",
    "view-source:https://example.org/", "url:https://example.org/",
    # user names
    "https://user@example.org/", "https://user:pass@example.org/", "https://@example.org/",
    "https://:@example.org/", "https://example.org@other.net/",
    "https://example.org:443@other.net/",
    "https://example.org%40other.net/", "https://a@b@example.org/",
    "https://example.org:@other.net",
    # backslashes, blanks and control characters
    "https:\\\\example.org\\a", "https://example.org\\@other.net/",
    "https://other.net\\.example.org/",
    "https://example.org/a\\b", "\\\\example.org\\a", "https:/\\example.org/",
    "https://example.org\t/",
    "ht\ntps://example.org/", "https://exam\nple.org/", "https://example.org/a\r\nHost: other.net",
    "https://example.org/a\0b", " https://example.org/", "https://example.org/ ",
    "https://example.org/a b",
    "\x01https://example.org/", "https://example.org\x7f/", "https://example.org/\x80",
    "\ufeffhttps://example.org/",
    "https://example.org/\u2028", "https://exam\u200bple.org/", "https://exam\u00adple.org/",
    "https://example.org/\u202egnp.a", "https://example.org\u3000/", "https://example.org/\u00a0",
    # escapes in the host
    "https://ex%61mple.org/", "https://example.org%2f@other.net/", "https://example%2eorg/",
    "https://%65xample.org/",
    # IPv4 in other notations
    "http://2130706433/", "http://0x7f000001/", "http://017700000001/", "http://127.1/",
    "http://127.0.1/",
    "http://0177.0.0.1/", "http://0x7f.0.0.1/", "http://0X7F.0.0.1/", "http://127.0.0.01/",
    "http://127.0.0.1./",
    "http://1.2.3/", "http://1/", "http://0/", "http://0x/", "http://1.2.3.4.5/",
    "http://256.1.1.1/",
    "http://1.2.3.0x4/", "http://93.184.215.014/", "http://93.184.55054/", "http://1572394766/",
    "http://093.184.215.14/", "http://4294967296/", "http://１２７.０.０.１/", "http://①②⑦.0.0.1/",
    "http://９３.184.215.14/", "http://93。184。215。14/", "http://+93.184.215.14/",
    "http://93.184.215.-1/",
    "http://93.184.215.14.example.0x0/", "http://example.1/", "http://1e2.3/",
    # IPv6 in other notations
    "http://[::1", "http://::1/", "http://[::1]x/", "http://[]/", "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://[2606:2800:21f::1%25lo]/", "http://[93.184.215.14]/", "http://[example.org]/",
    "http://[v1.a]/",
    "http://[::ffff:0x7f.0.0.1]/", "http://[1:2:3]/", "http://2606:2800:21f::1/", "http://[[::1]]/",
    # ports
    "https://example.org:/", "https://example.org:0/", "https://example.org:65536/",
    "https://example.org:-1/",
    "https://example.org:+443/", "https://example.org:0443/", "https://example.org:4 43/",
    "https://example.org:443:80/",
    "https://example.org:https/", "https://example.org:0x1bb/", "https://example.org:４４３/",
    "https://example.org:99999999/",
    "https://example.org:443@/", "https://[2606:2800:21f::1]:/",
    # names that are none
    "https://*.example.org/", "https://exa mple.org/", "https://example!.org/",
    "https://-example.org/",
    "https://example-.org/", "https://exa$mple.org/", "https://exa'mple.org/",
    "https://(example.org)/",
    "https://example.org;x/", "https://example.org,other.net/", "https://xn--/",
    "https://xn--a.org/", "https://xn--99999.org/",
    "https://☃.example/", "https://ex℀mple.org/", "https://example.org／other.net/",
    "https://a\u0338.org:x/",
    "https://" + "a" * 64 + ".org/", "https://" + "a." * 127 + "org/",
    "https://example.org/" + "a" * LONGEST_URL,
    "https://\u0660.org:80a/", "https://<example>.org/", "https://{}/", "https://example.org|/",
    "https://^/",
]  # fmt: skip


@pytest.mark.parametrize("url", SPELLINGS)
@pytest.mark.parametrize("policy", [ANY_PORT, replace(ANY_PORT, allow_private=True)])
def test_odd_spellings_are_refused_before_a_name_is_resolved(url: str, policy: MediaPolicy) -> None:
    def never(host: str) -> Iterable[str]:
        raise AssertionError(f"{host} was resolved")

    with pytest.raises(ApplianceError) as caught:
        check_url(url, policy, never, param=PARAM)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "media_not_allowed", PARAM)
    assert len(url) < 8 or url not in error.message


UNLISTED = [
    "https://other.net/a", "https://org/", "https://example.com/", "https://notexample.org/",
    "https://example.org.other.net/", "https://exampleXorg/", "https://example.org-other.net/",
    "https://cdn.example.org.evil.net/", "https://еxample.org/", "https://xn--xample-2of.org/",
    "https://sub.shop.example.net/", "https://example.net/", "https://bucher.example/",
    "https://sub.bücher.example/", "https://strasse.example/", "https://93.184.215.15/",
    "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2d]/", "https://[::ffff:93.184.215.14]/",
    "https://example.org:8443/", "https://example.org:80/", "http://example.org:443/",
    "https://cdn.example.org:444/", "https://ports.test/", "https://ports.test:443/",
    "http://ports.test/", "https://ports.test:8444/", "https://sub.any.test:8443/",
    "http://localhost/", "http://127.0.0.1/", "http://10.0.0.1/", "https://1.93.184.215.14.nip.io/",
]  # fmt: skip


@pytest.mark.parametrize("url", UNLISTED)
def test_hosts_and_ports_that_are_not_listed_are_refused(url: str) -> None:
    error = refused(url, LISTED)
    assert (error.status, error.code) == (400, "media_not_allowed")
    assert "example.org" not in error.message
    assert "test" not in error.message
    # the spelling is fine: it is the list that refuses it
    assert check_url(url, ANY_PORT_PRIVATE, lambda host: [PUBLIC]).host


ANY_PORT_PRIVATE = replace(ANY_PORT, allow_private=True)


@pytest.mark.parametrize("url", [url for url, *_ in ACCEPTED])
def test_nothing_is_fetched_until_a_domain_is_listed(url: str) -> None:
    error = refused(url, media_policy())
    assert (error.status, error.code) == (400, "media_not_allowed")
    assert "data: URL" in error.message
    assert "data: URL" not in refused(url, media_policy(schemes=("https", "http"))).message


def test_a_wildcard_takes_every_public_host_at_its_own_port_only() -> None:
    for url in ("https://other.net/", "https://example.org", f"http://{PUBLIC}/"):
        assert check(url, OPEN).addresses == (PUBLIC,)
    for url in ("https://other.net:8443/", "http://other.net:22/", "https://other.net:80/"):
        assert refused(url, OPEN).code == "media_not_allowed"
        assert check(url, ANY_PORT).host == "other.net"
    only = media_policy(allowed_domains=("*:8443",))
    assert check("https://other.net:8443/", only).port == 8443
    assert refused("https://other.net/", only).code == "media_not_allowed"


PRIVATE_ADDRESSES = [
    # IPv4
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254", "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "168.63.129.16",
    # IPv6
    "::", "::1", "::2", "::127.0.0.1", "::7f00:1", "::93.184.215.14", "::ffff:127.0.0.1",
    "::ffff:a00:1",
    "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a00:1",
    "64:ff9b::c0a8:101", "64:ff9b:1::1", "64:ff9b:1::5db8:d70e", "100::1", "2001::1",
    "2001:0:5db8:d70e::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::",
    "2002:5db8:d70e::1", "3fff::1", "5f00::1", "fc00::1", "fd12:3456:789a::1", "fe80::1", "febf::1",
    "fec0::1", "ff02::1", "ff0e::1", "2606:2800:21f::5efe:7f00:1", "2606:2800:21f::200:5efe:a00:1",
    "4000::1", "fd00:ec2::254",
]  # fmt: skip
PUBLIC_ADDRESSES = [
    PUBLIC, "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1",
    "126.255.255.255", "128.0.0.1", "172.15.255.255", "172.32.0.1", "192.167.255.255",
    "192.169.0.1",
    "198.17.255.255", "198.20.0.1", "223.255.255.255", "2606:2800:21f:cb07:6820:80da:af6b:8b2c",
    "2001:4860:4860::8888", "2a00:1450:4001::1", "64:ff9b::5db8:d70e", "::ffff:93.184.215.14",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE_ADDRESSES)
def test_private_addresses_are_refused_as_literals_and_as_answers(address: str) -> None:
    literal = f"http://[{address}]/" if ":" in address else f"http://{address}/"
    answers = {
        "one.test": [address],
        "first.test": [address, PUBLIC],
        "last.test": [PUBLIC, address],
    }
    messages = set()
    for url in (literal, *(f"https://{name}/" for name in answers)):
        with pytest.raises(ApplianceError) as caught:
            check_url(url, OPEN, answers.__getitem__)
        assert (caught.value.status, caught.value.code) == (400, "media_not_allowed")
        messages.add(caught.value.message)
        assert check_url(url, replace(OPEN, allow_private=True), answers.__getitem__).addresses
    assert len(messages) == 1, "a refusal tells nothing about the address"


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_public_addresses_are_not_refused(address: str) -> None:
    assert check_url("https://one.test/", OPEN, lambda _: [address]).addresses == (address,)


def test_what_is_no_address_is_not_public() -> None:
    assert not any(
        map(is_public, ["", "localhost", "no address", "127.1", "0x7f000001", "1.1.1.1 "])
    )


BY_NAME = [
    "loopback", "loopback6", "private", "metadata", "mixed", "mixed6", "last", "odd", "zone",
]  # fmt: skip


@pytest.mark.parametrize("name", BY_NAME)
def test_a_listed_name_with_any_private_address_is_refused(name: str) -> None:
    url = f"https://{name}.example.org/latest/meta-data"
    error = refused(url, LISTED)
    assert (error.status, error.code) == (400, "media_not_allowed")
    assert not any(address in error.message for address in NAMES[f"{name}.example.org"])
    assert "media." not in error.message
    assert refused(url, OPEN).code == "media_not_allowed"
    private = check(url, replace(LISTED, allow_private=True))
    assert list(private.addresses) == list(dict.fromkeys(NAMES[f"{name}.example.org"]))


def test_a_name_without_addresses_is_a_failure_of_the_origin() -> None:
    for url in ("https://nothing.example.org/", "https://unknown.example.org/"):
        error = refused(url, LISTED)
        assert (error.status, error.code) == (502, "media_fetch_failed")
        assert "no such name" not in error.message


def test_an_unlisted_name_is_never_resolved() -> None:
    asked: list[str] = []

    def record(host: str) -> list[str]:
        asked.append(host)
        return [PUBLIC]

    with pytest.raises(ApplianceError):
        check_url("https://secrets.other.net/", LISTED, record)
    assert asked == []
    check_url("https://CDN.example.org./", LISTED, record)
    assert asked == ["cdn.example.org"]


def test_data_urls_and_files_are_as_the_policy_says() -> None:
    assert check("data:image/png;base64,AAAA", media_policy()).scheme == "data"
    assert check("DATA:,", media_policy()).path == "DATA:,"
    assert refused("data:,", media_policy(schemes=("https",))).code == "media_not_allowed"
    folder = media_policy(local_path="/srv/media")
    for url in ("file:///srv/media/ä%20b.png", "FILE://localhost/srv/media/%C3%A4%20b.png"):
        assert check(url, folder) == Target("file", path="/srv/media/ä b.png")
    for url in (
        "file:relative", "file:/srv/media/a", "file://host/srv/media/a", "file:///srv/a?b",
        "file:///srv/%00", "file:///srv/%ff", "file://", "file:///a\\b", "file:///a b",
    ):  # fmt: skip
        assert refused(url, folder).code == "media_not_allowed"
    assert refused("file:///srv/media/a", media_policy()).code == "media_not_allowed"


def test_schemes_can_be_taken_away() -> None:
    https = replace(LISTED, schemes=("https",))
    assert check("https://example.org/", https).port == 443
    assert refused("http://example.org/", https).code == "media_not_allowed"


def test_behind_a_proxy_names_are_not_resolved_and_private_ones_refused() -> None:
    policy = replace(ANY_PORT, proxy="http://proxy:3128")

    def never(host: str) -> Iterable[str]:
        raise AssertionError(f"{host} was resolved")

    for url in ("https://other.net/", f"https://{PUBLIC}/"):
        assert check_url(url, policy, never).addresses == ()
    for host in (
        "localhost", "x.localhost", "intranet", "printer.local", "metadata.google.internal",
        "router.home.arpa", "a.lan", "127.0.0.1", "169.254.169.254", "[::1]", "[fd00::1]",
    ):  # fmt: skip
        with pytest.raises(ApplianceError) as caught:
            check_url(f"http://{host}/", policy, never)
        assert caught.value.code == "media_not_allowed"
        assert check_url(f"http://{host}/", replace(policy, allow_private=True), never).host


DENY, SAME, ALLOWED = "deny", "same_host", "allowed_domains"
REDIRECTS = [  # from, Location, and where it leads under same_host and under allowed_domains
    ("https://example.org/a", "/b", "https://example.org/b", "https://example.org/b"),
    ("https://example.org/a/b", "c?d=e", "https://example.org/a/c?d=e", "https://example.org/a/c?d=e"),
    ("https://example.org/a/b", "../c", "https://example.org/c", "https://example.org/c"),
    ("https://example.org/a", "?q=1", "https://example.org/a?q=1", "https://example.org/a?q=1"),
    ("https://example.org/a", "//example.org/b", "https://example.org/b", "https://example.org/b"),
    ("https://example.org/a", "https://EXAMPLE.org./b", "https://example.org/b", "https://example.org/b"),
    ("http://example.org/a", "https://example.org/b", "https://example.org/b", "https://example.org/b"),
    ("http://example.org/a", "http://example.org/b", "http://example.org/b", "http://example.org/b"),
    ("https://example.org/a", "/ä", "https://example.org/%C3%A4", "https://example.org/%C3%A4"),
    ("https://example.org/a", "https://cdn.example.org/b", None, "https://cdn.example.org/b"),
    ("https://example.org/a", "//cdn.example.org/b", None, "https://cdn.example.org/b"),
    ("http://example.org/a", "https://any.test:99/b", None, "https://any.test:99/b"),
    ("https://example.org/a", f"https://{PUBLIC}/", None, f"https://{PUBLIC}/"),
    ("https://example.org/a", "http://example.org/b", None, None),  # downgrade
    ("https://example.org/a", "http://cdn.example.org/b", None, None),
    ("https://example.org/a", "https://example.org:8443/b", None, None),
    ("https://example.org/a", "https://other.net/b", None, None),
    ("https://example.org/a", "//other.net/b", None, None),
    ("https://example.org/a", "https://example.org@other.net/", None, None),
    ("https://example.org/a", "https://user:pass@example.org/", None, None),
    ("https://example.org/a", "https://loopback.example.org/", None, None),
    ("https://example.org/a", "https://mixed.example.org/", None, None),
    ("https://example.org/a", "https://metadata.example.org/", None, None),
    ("https://example.org/a", "http://169.254.169.254/", None, None),
    ("https://example.org/a", "https://127.0.0.1/", None, None),
    ("http://example.org/a", "http://0x7f000001/", None, None),
    ("http://example.org/a", "http://localhost:6379/", None, None),
    ("http://example.org/a", "http://[::1]/", None, None),
    ("http://example.org/a", "//127.0.0.1/", None, None),
    ("https://example.org/a", "https:\\\\other.net", None, None),
    ("https://example.org/a", "/\\other.net", None, None),
    ("https://example.org/a", "\\\\other.net\\", None, None),
    ("https://example.org/a", "/\t/other.net", None, None),
    ("https://example.org/a", "/b c", None, None),
    ("https://example.org/a", " /b", None, None),
    ("https://example.org/a", "https://[::1/", None, None),
    ("https://example.org/a", "file:///etc/passwd", None, None),
    ("https://example.org/a", "data:image/png;base64,AAAA", None, None),
    ("https://example.org/a", "DATA:,", None, None),
    ("https://example.org/a", "ftp://example.org/", None, None),
    ("https://example.org/a", "javascript:alert(1)", None, None),
    ("https://example.org/a", "gopher://example.org/", None, None),
]  # fmt: skip


def redirected(source: str, location: str, policy: MediaPolicy, hop: int = 1) -> str | None:
    start = check(source, policy)
    try:
        target = read_redirect(start, location, hop, policy, param=PARAM)
        return check_addresses(target, policy, resolve, param=PARAM).url
    except ApplianceError as refusal:
        check_refusal(refusal)
        return None


def check_refusal(refusal: ApplianceError) -> None:
    assert (refusal.status, refusal.code, refusal.param) == (400, "media_not_allowed", PARAM)
    assert "other.net" not in refusal.message
    assert "169.254" not in refusal.message


@pytest.mark.parametrize(("source", "location", "same", "allowed"), REDIRECTS)
def test_redirects(source: str, location: str, same: str | None, allowed: str | None) -> None:
    listed = replace(LISTED, local_path="/etc")
    assert redirected(source, location, replace(listed, redirects=SAME)) == same
    assert redirected(source, location, replace(listed, redirects=ALLOWED)) == allowed
    assert redirected(source, location, replace(listed, redirects=DENY)) is None


def test_redirects_are_counted() -> None:
    policy = replace(LISTED, redirects=SAME, max_redirects=2)
    assert [redirected("https://example.org/", "/a", policy, hop) for hop in (1, 2, 3)] == [
        "https://example.org/a", "https://example.org/a", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "entry",
    [
        "", "https://example.org", "example.org/", "a@b", "exa mple.org", "*example.org", "*.*.org",
        "ex*.org", ".example.org", "example.org:", "example.org:0", "example.org:70000",
        "*.1.2.3.4",
        "127.1", "[::1", "::1", "example..org", "**", "*.", "example.org:80:81", "-a.org", "☃.org",
    ],
)  # fmt: skip
def test_entries_that_are_no_hosts_are_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_domain(entry)


def test_targets_show_no_query() -> None:
    target = check("https://example.org/a?signature=secret", LISTED)
    assert "secret" not in repr(target)
    assert "secret" in target.url
