"""launcher/clusterfile/config.py: what a cluster.yaml may say, and where it is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memcluster.client.discover import cluster_name, outline, varies
from memcluster.client.variables import substitute
from memcluster.launcher.clusterfile.config import ConfigError, json_schema, load
from memcluster.launcher.clusterfile.written import dump
from memcluster.node.transport.address import Address

PLENTY = 1 << 50
MACHINE = 1 << 30


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(text: str | bytes, available: int = PLENTY) -> list[str]:
    """What is wrong with a file of this text."""
    Path("cluster.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        load(Path("cluster.yaml"), available)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def loaded(text: str, available: int = PLENTY):
    Path("cluster.yaml").write_text(text)
    return load(Path("cluster.yaml"), available)


REACHED = (
    "can be reached from other machines: listen on 127.0.0.1 or on a unix socket, {}or write insecure_network: true if "
    "whoever gets there may read and write the memory"
)
REACHED_DOOR, REACHED = REACHED.format("have clients use TLS (tls), "), REACHED.format("")
CASES = [
    ("memory: 64XB", "1:9: memory: '64XB' is not a size; write 4096, 0x1000, 64KiB or 1GiB"),
    ("memory: 0", "1:9: memory must be more than 0 bytes and less than 1 EiB (got 0)"),
    ("memory: [1]", "1:9: memory must be a size; write 4096, 0x1000, 64KiB or 1GiB"),
    ("name: x", "1:1: memory is missing"),
    ("memory: 1MiB\nlisen: x", "2:1: unknown key 'lisen'; did you mean 'listen'?"),
    ("memory: 1MiB\nclients: {limt: 3}", "2:11: unknown key 'limt'; did you mean 'limit'?"),
    ("memory: 1MiB\ntopology: ring",
     "2:11: topology must be one of chain, client-routed, dispatcher, primary-secondary (got 'ring')"),
    ("memory: 2MiB\ntopology: chain\nservers: [{memory: 1MiB}, {memory: 1MiB, listen: '[::1]:0'}]",
     "3:50: with topology chain only server 0's address can be chosen"),
    ("memory: 1MiB\nfan_out: fast", "2:10: fan_out must be parallel or serial (got 'fast')"),
    ("memory: 1MiB\nlinks: wires", "2:8: links must be copy or shared (got 'wires')"),
    ("memory: 1MiB\ntopology: chain\nlinks: shared",
     "3:8: with topology chain servers share no memory: only with primary-secondary"),
    ("memory: 1MiB\nlayout: {stripe: 1000}", "2:18: layout.stripe must be a power of two, 512 or more (got 1000)"),
    ("memory: 1MiB\nlayout: round", "2:9: layout must be linear or {stripe: SIZE} (got 'round')"),
    ("memory: 1MiB\nclients: {limit: many}", "2:18: clients.limit must be a whole number or auto (got 'many')"),
    ("memory: 1MiB\nservers:", "2:9: servers must be a whole number or a list of {memory, listen} (got nothing)"),
    ("memory: 1MiB\nfan_out: true", "2:10: fan_out must be parallel or serial (got true)"),
    ("memory: 1MiB\n---\nmemory: 2MiB",
     "2:1: not YAML: expected a single document in the stream, but found another document"),
    (b"memory: 1MiB\nname: \xc3\xa9\xff", "2:8: this is not UTF-8"),
    ("memory: 1MiB\nservers: 0", "2:10: servers must be at least 1 (got 0)"),
    ("memory: 1MiB\nservers: 65", "2:10: servers must be at most 64 (got 65)"),
    ("memory: 1MiB\nservers: []", "2:10: servers must have 1 to 64 entries"),
    ("memory: 1MiB\nservers: many", "2:10: servers must be a whole number or a list of {memory, listen} (got 'many')"),
    ("memory: 1MiB\nservers: [{listen: 'a:1'}]", "2:11: servers[0].memory is missing"),
    ("memory: 2MiB\nservers: [{memory: 1MiB}, {memory: 2MiB}]",
     "2:10: servers add up to 3MiB (3145728 bytes), memory is 2MiB (2097152 bytes)"),
    ("memory: 8KiB\nservers: 3",
     "1:9: memory of 8KiB is less than one of the pages of 4096 bytes for each of 3 servers"),
    ("memory: 64", "1:9: memory of 64 is less than one of the pages of 4096 bytes for each of 1 server"),
    ("memory: 100KiB\nlayout: {stripe: 64KiB}", "1:9: memory must be whole stripes of 64KiB"),
    ("memory: 2GiB", "1:9: memory of 2GiB is more than there is room for (1024 MiB: memory); make it smaller, or give "
     "a directory as storage"),
    ("memory: 1MiB\nlisten: nowhere",
     "2:9: listen: 'nowhere' is not an address; write HOST:PORT, [::1]:PORT or unix:PATH"),
    ("memory: 1MiB\nlisten: 'a:99999'", "2:9: listen: 'a:99999': the port must be a number from 0 to 65535"),
    ("memory: 1MiB\nlogs: {level: errors, sample: 10}", "2:31: sample thins out requests that went well, of which "
     "level: errors keeps none; leave one of them out"),
    ("memory: 1MiB\nclients: {limit: 0}", "2:18: clients.limit must be at least 1 (got 0)"),
    ("memory: 1MiB\nhang_timeout: 99ms", "2:15: hang_timeout must be 100ms or more (got '99ms')"),
    ("memory: 1MiB\nstop_timeout: never", "2:15: stop_timeout: 'never' is not a time span; write 500ms, 10s, 2m or 1h"),
    ("memory: 1MiB\nname: de mo", "2:7: name must be 1 to 40 letters, digits, - or _, with a letter or digit first"),
    ("memory: 1MiB\nmemory: 2MiB", "2:1: 'memory' is there twice"),
    ("- 1", "1:1: must be keys and values, memory: 64MiB at least"),
    ("", "1:1: must be keys and values, memory: 64MiB at least"),
    ("memory: &a [*a]", "1:9: aliases make it endless"),
    ("memory: 1MiB\nname: a\x01b", "2:8: not YAML: the character U+0001 is not allowed"),
    ("memory: 2MiB\nservers: [{memory: 1MiB}, {memory: 1MiB, listen: '127.0.0.1:10809'}]",
     "2:50: 127.0.0.1:10809 is the address of another already"),
    ("memory: 2MiB\nlisten: unix:/a\nservers: [{memory: 1MiB}, {memory: 1MiB, listen: 'unix:/a'}]",
     "3:50: unix:/a is the address of another already"),
    ("memory: 1MiB\nlisten: 0.0.0.0:10809", f"2:9: 0.0.0.0:10809 {REACHED_DOOR}"),
    ("memory: 1MiB\nlisten: '[::]:0'", f"2:9: [::]:0 {REACHED_DOOR}"),
    ("memory: 1MiB\nlisten: 192.0.2.7:0", f"2:9: 192.0.2.7:0 {REACHED_DOOR}"),
    ("memory: 1MiB\nlisten: '0:1'", f"2:9: 0:1 (0.0.0.0) {REACHED_DOOR}"),
    ("memory: 1MiB\nlisten: '[::ffff:192.0.2.7]:0'", f"2:9: [::ffff:192.0.2.7]:0 (192.0.2.7) {REACHED_DOOR}"),
    ("memory: 1MiB\nmetrics: 0.0.0.0:9100", f"2:10: 0.0.0.0:9100 {REACHED}"),
    ("memory: 2MiB\nservers: [{memory: 1MiB}, {memory: 1MiB, listen: '0.0.0.0:0'}]",
     f"2:50: 0.0.0.0:0 {REACHED}"),
    ("memory: 1MiB\ninsecure_network: true\ntopology: client-routed\nlisten: 0.0.0.0:0",
     "4:9: with topology client-routed clients are told where every server is, and 0.0.0.0 is no place to connect to: "
     "add advertise: HOST, as clients know this machine"),
    ("memory: 1MiB\nadvertise: 0.0.0.0", "2:12: advertise must be a host to connect to: a name, or an address without "
     "a port (got '0.0.0.0')"),
    ("memory: 1MiB\nlisten: unix:s\nadvertise: nas", "3:12: advertise is the host of a TCP address, and clients come "
     "to a unix socket here"),
    ("memory: 1MiB\nuser: nobody-at-all", "2:7: user: there is no user 'nobody-at-all' on this machine"),
    ("memory: 1MiB\nuser: 'root:nobody-at-all'", "2:7: user: there is no group 'nobody-at-all' on this machine"),
    ("memory: 1MiB\nuser: 99999999999", "2:7: user: '99999999999' is no number of a user or a group"),
    ("memory: 1MiB\nuser: [1]", "2:7: user must be USER or USER:GROUP"),
    ("memory: 1MiB\nsockets: {mode: 0460}", "2:17: sockets.mode must be the permissions of a file, 0600 to 0777 "
     "(got '0460')"),
    ("memory: 1MiB\nsockets: {group: nobody-at-all}", "2:18: sockets.group must be a group of this machine "
     "(got 'nobody-at-all')"),
    ("memory: 1MiB\nmetrics: 127.0.0.1:10809", "2:10: 127.0.0.1:10809 is the address of another already"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), CASES, ids=[text for text, _ in CASES])
def test_each_mistake_has_its_place_and_its_sentence(folder, text, message):
    """One problem, exactly there, in words that say what would be right."""
    assert problems(text, MACHINE) == [f"cluster.yaml:{message}"]


def test_all_mistakes_are_told_at_once(folder):
    """In the order of the lines, across keys and between keys."""
    text = "memory: 3MiB\nservers: [{memory: 1MiB}]\ntopology: ring\nstop_timeout: x\nextra: 1\n"
    assert [line.split(" ")[0] for line in problems(text)] == [
        "cluster.yaml:2:10:", "cluster.yaml:3:11:", "cluster.yaml:4:15:", "cluster.yaml:5:1:",
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "places"), [
    ("memory: 2GiB\nservers: 0", ["1:9", "2:10"]),
    ("memory: x\nlisten: unix:/a\nmetrics: unix:/a", ["1:9", "3:10"]),
    ("memory: 3MiB\nlayout: round\nservers: [{memory: 1MiB}]", ["2:9", "3:10"]),
    ("memory: x\nservers: [{memory: 1MiB}]\nlayout: {stripe: 2MiB}", ["1:9", "2:20"]),
    ("memory: 1KiB\nservers: 2\nlayout: {stripe: 3}", ["3:18"]),
    ("memory: 2GiB\nstorage: 3", ["2:10"]),
])  # fmt: skip
def test_a_mistake_hides_only_what_depends_on_it(folder, text, places):
    """What can still be held against one another is; nothing is held against a value that is wrong itself."""
    assert [line.split(": ")[0] for line in problems(text, MACHINE)] == [f"cluster.yaml:{place}" for place in places]


@pytest.mark.parametrize("text", ["memory: [", "memory: 1MiB\n\tservers: 2", "memory: 'x", "a: b: c", b"\xff\xfe\x00"])
def test_what_is_not_yaml_is_one_problem(folder, text):
    """With the line and column where the parser gave up, if it got that far."""
    assert len(problems(text)) == 1
    assert problems(text)[0].startswith("cluster.yaml:")


def test_a_file_that_is_not_there(folder):
    """One sentence."""
    with pytest.raises(ConfigError, match="no such file"):
        load(Path("missing.yaml"))


@pytest.mark.parametrize("name", ["demo", "off", "No", "'7'", "12", "007", "0x10", "true", "null", "1_000", "", None])
def test_clients_find_a_cluster_by_the_name_that_the_launcher_gives_it(folder, name):
    """Both read the same file, the client only its name."""
    text = "memory: 1MiB\n" + (f"name: {name}\n" if name is not None else "")
    assert loaded(text).name == cluster_name(Path("cluster.yaml"))


def test_a_name_is_what_is_written(folder):
    """Digits, too, are no number."""
    assert loaded("name: 007\nmemory: 1MiB").name == "007"
    assert loaded(dump(loaded("name: 007\nmemory: 1MiB"))).name == "007"


def test_every_key_but_memory_has_a_default(folder):
    """And they are those of the documentation."""
    config = loaded("memory: 1MiB")
    assert config.name == folder.name[:40]
    assert [(server.memory, server.listen) for server in config.servers] == [(1 << 20, Address("127.0.0.1", 10809))]
    assert (config.topology, config.fan_out, config.links) == ("primary-secondary", "parallel", "copy")
    assert config.stripe == 0
    assert config.storage is None
    assert (config.clients.limit, config.stop_timeout, config.retry_timeout) == (64, 10.0, 30.0)
    assert config.logs.directory == folder / "logs"


def test_values_are_read_as_yaml_1_2(folder):
    """`off` is a word, numbers may be hexadecimal, keys beginning with x- are nobody's."""
    config = loaded("memory: 0x100000\nlogs: {level: off}\nx-anything: [1, {}]\nrestart: {deaths: 010}")
    assert (config.memory, config.logs.level, config.restart.deaths) == (1 << 20, "off", 10)


def test_paths_are_relative_to_the_file(folder):
    """Storage, logs and unix sockets."""
    config = loaded("memory: 1MiB\nstorage: data\nlogs: {directory: /var/l}\nlisten: unix:s.sock")
    assert config.storage == folder / "data"
    assert config.logs.directory == Path("/var/l")
    assert config.servers[0].listen == Address(path=str(folder / "s.sock"))


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.8.9.1:0", "localhost:0", "'[::1]:0'", "unix:s",
                                     "'[::ffff:127.0.0.1]:0'", "'127.1:0'"])  # fmt: skip
def test_what_this_machine_alone_reaches_needs_no_word(folder, address):
    """All of loopback, however it is written, and unix sockets."""
    assert not problems(f"memory: 1MiB\nlisten: {address}\nmetrics: {address}".replace("\nmetrics: unix:s", ""))


def test_where_every_server_is_a_door_all_listen_as_the_first_does(folder):
    """Whoever reaches one is to reach all; and what one file says of it is told once."""
    text = "memory: 1MiB\nservers: 3\ntopology: client-routed\nlisten: '[::]:4711'\n"
    config = loaded(f"{text}insecure_network: true\nadvertise: nas.example")
    assert [str(server.listen) for server in config.servers] == ["[::]:4711", "[::]:0", "[::]:0"]
    assert len(problems(f"{text}advertise: nas.example")) == 1


@pytest.mark.parametrize("written", ["root", "1000", "'1000:1000'", "1000:root"])
def test_a_user_is_a_name_or_a_number(folder, written):
    """As docker compose has it; and `config` writes it so that it is read again."""
    config = loaded(f"memory: 1MiB\nuser: {written}")
    assert config.user == written.strip("'")
    assert loaded(dump(config)) == config


@pytest.mark.parametrize("written", ["0660", "0o660", "'660'", "660"])
def test_the_mode_of_a_socket_is_octal_as_chmod_has_it(folder, written):
    """However it is written: no number of YAML's."""
    config = loaded(f"memory: 1MiB\nsockets: {{mode: {written}}}")
    assert config.sockets.mode == 0o660
    assert loaded(dump(config)) == config


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 20), st.integers(1, 1 << 30), st.sampled_from([0, 512, 4096, 1 << 16]))
def test_a_count_of_servers_divides_the_memory(folder, servers, memory, stripe):
    """Shards add up to the memory and differ by one page or stripe, and the odd tail, at most."""
    unit = stripe or 4096
    memory = max(memory, unit * servers)
    memory -= memory % stripe if stripe else 0
    layout = f"{{stripe: {stripe}}}" if stripe else "linear"
    sizes = [server.memory for server in loaded(f"memory: {memory}\nservers: {servers}\nlayout: {layout}").servers]
    assert sum(sizes) == memory
    whole = [size - size % unit for size in sizes]
    assert max(whole) - min(whole) <= unit


SCRAPS = ["memory: 1", "servers:", " - {", "&a", "*a", "? x", "\n", ": ", "!!int"]
FILES = st.builds(
    lambda servers, fan_out, links, layout, limit, span, level: (
        f"name: a-1\nmemory: 8MiB\nservers: {servers}\nfan_out: {fan_out}\nlinks: {links}\nlayout: {layout}\n"
        f"clients: {{limit: {limit}}}\nstop_timeout: {span}\nlogs: {{level: {level}}}\n"
    ),
    st.sampled_from(["1", "3", "[{memory: 1MiB}, {memory: 7MiB, listen: 'unix:x'}]"]),
    st.sampled_from(["parallel", "serial"]),
    st.sampled_from(["copy", "shared"]),
    st.sampled_from(["linear", "{stripe: 64KiB}"]),
    st.sampled_from(["1", "64", "auto"]),
    st.sampled_from(["500ms", "10s", "2m", "1.5"]),
    st.sampled_from(["requests", "errors", "off"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILES)
def test_what_config_prints_means_the_same(folder, text):
    """The dump of a configuration loads to an equal one."""
    config = loaded(text)
    printed = dump(config)
    assert loaded(printed) == config
    assert dump(loaded(printed)) == printed


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(), st.lists(st.sampled_from(SCRAPS)).map("".join)))
def test_arbitrary_text_raises_nothing_but_config_error(folder, text):
    """Whatever a file says."""
    problems(text.encode(errors="surrogatepass"))


def test_the_schema_names_every_key():
    """What editors complete and check is what is read."""
    schema = json_schema()
    assert {"name", "memory", "servers", "topology", "layout", "clients", "logs"} <= set(schema["properties"])
    assert schema["required"] == ["memory"]
    assert schema["additionalProperties"] is False


def descriptions(schema: dict) -> dict[str, str | None]:
    found = {key: value.get("description") for key, value in schema["properties"].items()}
    for name, part in schema["$defs"].items():
        found |= {f"{name}.{key}": value.get("description") for key, value in part["properties"].items()}
    return found


def test_the_schema_describes_every_key():
    assert not [key for key, words in descriptions(json_schema()).items() if not words]


def forms(key: str) -> list[dict]:
    found = json_schema()["properties"][key]
    return [found] if "type" in found else found["anyOf"]


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    [
        ("memory", ["4096", "0x1000", "64KiB", "64 kib", "1.5G", "4096b", "${SIZE}"], ["", "64XB", "-1", "1."]),
        ("stop_timeout", ["10", "500ms", "10s", "2 m", "1.5h", "$WAIT"], ["", "10d", "s", "-1s", "1h30m"]),
        ("listen", ["127.0.0.1:0", "[::1]:10809", "unix:demo.sock", "host:80"], ["", "80", ":80", "::1:80", "unix:"]),
        ("name", ["demo", "a-1_b", "x" * 40], ["", "-a", "x" * 41, "a b"]),
    ],
)
def test_the_schemas_patterns_say_what_the_launcher_says(folder, key, right, wrong):
    """An editor marks what the launcher would refuse, and nothing else; the examples are right."""
    [form] = [form for form in forms(key) if form.get("type") == "string"]

    def refused(value: str) -> list[str]:
        memory = "" if key == "memory" else "memory: 1MiB\n"
        return problems(f"{memory}{key}: {json.dumps(value)}\n")

    for value in (*right, *form["examples"]):
        assert re.search(form["pattern"], value), value
        if "$" not in value:
            assert not refused(value)
    for value in wrong:
        assert not re.search(form["pattern"], value), value
        assert refused(value), value


def test_variables_of_the_environment_are_filled_in(folder, monkeypatch):
    """As docker compose has it; a default, a number, part of a text, and a dollar that is one."""
    monkeypatch.setenv("SERVERS", "2")
    monkeypatch.setenv("EMPTY", "")
    text = "name: c${SERVERS}\nmemory: ${SIZE:-2MiB}\nservers: ${SERVERS}\nstorage: 'a$$b'\ntopology: ${EMPTY:-chain}\n"
    config = loaded(text)
    assert (config.name, config.memory, len(config.servers), config.topology) == ("c2", 2 << 20, 2, "chain")
    assert config.storage is not None
    assert config.storage.name == "a$b"
    assert loaded(dump(config)) == config


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("${SIZE}", "the variable SIZE is not set; set it, or write ${SIZE:-DEFAULT}"),
        ("$SIZE", "the variable SIZE is not set"),
        ("${SIZE:?say how much}", "say how much"),
        ("${SIZE", "after $ comes a variable, such as ${SIZE:-64MiB}; write $$ for a dollar"),
        ("5$", "write $$ for a dollar"),
    ],
)
def test_a_variable_that_is_not_set_is_told_with_its_place(folder, monkeypatch, value, said):
    monkeypatch.delenv("SIZE", raising=False)
    [problem] = problems(f"name: demo\nmemory: '{value}'\n")
    assert problem.startswith("cluster.yaml:2:9: ")
    assert said in problem


def test_a_name_of_the_environment_is_another_cluster_in_another(folder, monkeypatch):
    """What was started under one name is not taken for the other, though the file is the same."""
    Path("cluster.yaml").write_text("name: ${WHICH:-one}\nmemory: 1MiB\n")
    document = outline(Path("cluster.yaml"))
    assert varies(document)
    monkeypatch.delenv("WHICH", raising=False)
    assert cluster_name(Path("cluster.yaml")) == "one"
    monkeypatch.setenv("WHICH", "two")
    assert cluster_name(Path("cluster.yaml")) == "two"


@given(st.text("$${}:-+?Aa 0", max_size=12))
def test_any_text_is_filled_in_or_refused(text):
    """Never an endless loop, and a value is not looked into again."""
    with contextlib.suppress(ValueError):
        assert substitute(text, {"A": "$A"}).count("$A") <= text.count("$")


def test_a_configuration_cannot_be_changed(folder):
    """It is a fact, not a variable."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded("memory: 1MiB").name = "other"


def test_the_command_line_stands_in_the_place_of_the_file(folder):
    """Whole keys and parts of them, whatever form the file has; the rest stays."""
    Path("cluster.yaml").write_text("name: demo\nmemory: 1MiB\nservers: 3\nlogs: {level: errors}\n")
    given = [("memory", "4MiB"), ("servers", "2"), ("layout.stripe", "64KiB"), ("logs.retain", "1MiB"), ("x-note", "a")]
    config = load(Path("cluster.yaml"), PLENTY, given[:-1])
    assert (config.memory, len(config.servers), config.stripe) == (4 << 20, 2, 64 << 10)
    assert (config.logs.level, config.logs.retain) == ("errors", 1 << 20)
    assert len(load(Path("cluster.yaml"), PLENTY).servers) == 3


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("memory", "64XB", "--set memory: memory: '64XB' is not a size; write 4096, 0x1000, 64KiB or 1GiB"),
        ("servers", "0", "--set servers: servers must be at least 1 (got 0)"),
        ("layout.stripe", "1000", "--set layout.stripe: layout.stripe must be a power of two, 512 or more (got 1000)"),
        ("lisen", "x", "--set lisen: unknown key 'lisen'; did you mean 'listen'?"),
        ("logs.levle", "x", "--set logs.levle: unknown key 'levle'; did you mean 'level'?"),
        ("memory", "100", "--set memory: memory of 100 is less than one of the pages of 4096 bytes"),
        ("name", "other", "--set name: the other commands find the cluster by its name: use -f"),
        ("memory", "[", "--set memory: not YAML: expected the node content, but found '<stream end>'"),
        ("memory.more", "1", "--set memory.more: memory must be a size; write 4096, 0x1000, 64KiB or 1GiB"),
    ],
)
def test_what_is_set_wrongly_is_told_as_it_was_set(folder, key, value, said):
    """And not at a line of a file that is right."""
    Path("cluster.yaml").write_text("name: demo\nmemory: 1MiB\n")
    with pytest.raises(ConfigError) as told:
        load(Path("cluster.yaml"), PLENTY, [(key, value)])
    assert said in str(told.value)
