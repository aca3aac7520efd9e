"""`${VAR:-default}` in cluster.yaml, as docker compose has it. Text in, text out; what is set is handed in."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PLACE = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:?[-?+])([^${}]*))?\}|)", re.ASCII)


def substitute(text: str, variables: Mapping[str, str]) -> str:
    """The text with each variable's value in its place: `$VAR`, `${VAR}`; with `:-` or `-` what is taken where it is
    not set, with `:+` or `+` where it is, with `:?` or `?` what to say where it is not. A colon takes an empty variable
    for one that is not set. `$$` is a dollar. Raises ValueError."""

    def value(found: re.Match[str]) -> str:
        dollar, plain, braced, how, word = found.groups()
        if dollar:
            return "$"
        name = plain or braced
        if name is None:
            raise ValueError(f"{text!r}: after $ comes a variable, such as ${{SIZE:-64MiB}}; write $$ for a dollar")
        given = variables.get(name)
        if how and how[0] == ":" and not given:
            given = None
        match how and how[-1]:
            case "-":
                return word if given is None else given
            case "+":
                return "" if given is None else word
        if given is None:
            raise ValueError(word or f"the variable {name} is not set; set it, or write ${{{name}:-DEFAULT}}")
        return given

    return _PLACE.sub(value, text)
