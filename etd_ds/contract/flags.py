"""The job spec as command-line flags: one `--flag-name` per field, with the field's own description and default."""

from __future__ import annotations

import argparse
import types
from collections.abc import Collection
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError

from etd_ds.contract import errors, spec


def add(parser: argparse.ArgumentParser, *, leave_out: Collection[str] = ()) -> None:
    """Add a flag for every field of `JobSpec` but those named. Values stay text; `read` lets pydantic check them."""
    group = parser.add_argument_group("job spec")
    for name, field in spec.JobSpec.model_fields.items():
        if name in leave_out:
            continue
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": _help(name)}
        if field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif _is_list(field.annotation):
            options |= {"nargs": "*", "metavar": "X"}
        else:
            options["metavar"] = "X"
        group.add_argument("--" + name.replace("_", "-"), **options)


def read(args: argparse.Namespace, **fixed: Any) -> spec.JobSpec:
    """The checked spec from parsed flags. Raises `EtdError` that names the flag, what was wanted and what came."""
    return parse({**given(args), **fixed})


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The fields that the command line names, not yet checked."""
    found = {name: value for name, value in vars(args).items() if name in spec.JobSpec.model_fields}
    for name, value in found.items():
        # `--layer-selection top` is a rule, `--layer-selection 2 4 6` a list
        if name == "layer_selection" and len(value) == 1 and not value[0].isdigit():
            found[name] = value[0]
        elif value == "none" and name not in ("mode", "refit"):  # these have a value of that name
            found[name] = None
    return found


def parse(given: dict[str, Any]) -> spec.JobSpec:
    """`JobSpec` of a dictionary; pydantic's first complaint becomes one `EtdError` that names the field."""
    try:
        return spec.JobSpec.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, errors.EtdError):
            raise cause from None
        field = ".".join(str(part) for part in first["loc"][:1])
        if first["type"] == "extra_forbidden":
            message = f"{field}: no such field; known are {', '.join(spec.JobSpec.model_fields)}"
        elif first["type"] == "missing":
            message = f"{field}: required"
        else:
            message = f"{field}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r}"
        raise errors.EtdError(message, field=field, got=first["input"]) from None


def _help(name: str) -> str:
    field = spec.JobSpec.model_fields[name]
    text = (field.description or "").replace("\n", " ").replace("%", "%%")
    return text if field.is_required() else f"{text} (default: {_shown(field.default)})"


def _shown(default: object) -> str:
    if default is None or default == ():
        return "none"
    return str(default)


def _is_list(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return any(_is_list(part) for part in get_args(annotation))
    return origin is tuple
