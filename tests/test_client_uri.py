"""NBD URIs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcluster.client.uri import Target, parse_uri


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("nbd://127.0.0.1", Target("127.0.0.1", 10809)),
        ("nbd://127.0.0.1:4711", Target("127.0.0.1", 4711)),
        ("nbd://localhost/", Target("localhost", 10809)),
        ("nbd:///disk", Target("localhost", 10809, export="disk")),
        ("nbd://[::1]:4711/cluster.json", Target("::1", 4711, export="cluster.json")),
        ("nbd://host/a%20b%2fc", Target("host", 10809, export="a b/c")),
        ("nbd://host//leading", Target("host", 10809, export="/leading")),
        ("nbd+unix:///?socket=/run/nbd", Target(path="/run/nbd")),
        ("nbd+unix://?socket=/run/nbd", Target(path="/run/nbd")),
        ("nbd+unix:///disk?socket=/run/a%20b+c", Target(path="/run/a b+c", export="disk")),
    ],
)
def test_a_uri_names_an_address_and_an_export(uri, target):
    """As the NBD project's doc/uri.md says."""
    assert parse_uri(uri) == target


@pytest.mark.parametrize(
    "uri",
    ["", "nothing", "http://host", "nbd://host:port", "nbd://host:70000", "nbd://[::1", "nbd+unix:///",
     "nbd+unix:///?socket=", "nbd+unix:///?socket=/a&socket=/b", "nbd://host?socket=/a", "nbd+vsock://2:10809"],
)  # fmt: skip
def test_what_is_no_uri_is_named_in_a_sentence(uri):
    """ValueError, which quotes it."""
    with pytest.raises(ValueError) as wrong:
        parse_uri(uri)
    assert repr(uri) in str(wrong.value)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(st.one_of(
    st.builds(Target, st.sampled_from(["host", "10.0.0.1", "::1"]), st.integers(0, 65535), export=texts),
    st.builds(Target, path=texts.map("/run/".__add__), export=texts),
))  # fmt: skip
def test_the_text_of_a_target_is_its_uri(target):
    """Whatever characters are in the names."""
    assert parse_uri(str(target)) == target
