"""Addresses of the job API: what is taken, what is refused and why."""

from __future__ import annotations

import pytest

from launch.submit.address import parse_address
from trd_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://127.0.0.1:8265", "http://127.0.0.1:8265"),
        (" http://head:8265/ ", "http://head:8265"),
        ("https://ray.example.org", "https://ray.example.org"),
        ("https://example.org/team/ray/", "https://example.org/team/ray"),
        ("http://[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_an_address_is_taken_as_it_is(given: str, meant: str):
    assert parse_address(given) == meant


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "no http://"),
        ("auto", "write http://auto:8265"),
        ("head:8265", "write http://head:8265"),
        ("ray://head:10001", "ray:// is not spoken"),
        ("http://", "no host"),
        ("http://head", "write http://head:8265"),
        ("http://head:port", "correct the host or the port"),
        ("http://head:99999", "correct the host or the port"),
        ("http://head:0", "port 0"),
        ("http://head:8265/?token=1", "something after ?"),
    ],
)
def test_what_is_no_address_is_refused_with_a_remedy(given: str, says: str):
    with pytest.raises(ConfigError, match="malformed address") as caught:
        parse_address(given)
    assert says in str(caught.value)
    assert "--address" in str(caught.value)


@pytest.mark.parametrize(
    "given", ["http://me:geheim@head:8265", "http://me:geheim@head:port", "ray://geheim@head:1"]
)
def test_a_password_is_refused_and_not_shown(given: str):
    with pytest.raises(ConfigError) as caught:
        parse_address(given)
    assert "geheim" not in str(caught.value)
