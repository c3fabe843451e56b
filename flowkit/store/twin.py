"""Twins: copies of the objects that a handler only added.

They are flushed later, with those of other messages, and keep the state in which the handler left its objects.
"""

import datetime
import decimal
import uuid
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import Any

from sqlalchemy.orm import Mapper
from sqlalchemy.orm.attributes import instance_dict, instance_state

STATE = "_sa_instance_state"
FIXED = frozenset(
    {type(None), bool, int, float, str, bytes, decimal.Decimal, uuid.UUID}
    | {datetime.datetime, datetime.date, datetime.time, datetime.timedelta}
)
"""Immutable types of values."""
Default = tuple[str, Callable[[Any], Any]]


def twin(instance: object) -> object | None:
    """Return a copy of a new object; None if flushing it later, or together with others, could have another effect.

    Column defaults that are Python functions are called now, in the context of the handler.
    """
    state = instance_state(instance)
    mapper: Mapper[Any] = state.mapper
    dispatch = mapper.dispatch
    defaults = _defaults(mapper)
    if state.key is not None or state.session_id is not None or defaults is None:
        return None
    if dispatch.before_insert or dispatch.after_insert:
        return None
    values = {name: value for name, value in instance_dict(instance).items() if name != STATE}
    for name, default in defaults:
        if values.get(name) is None:
            values[name] = default(None)
    if not all(type(value) in FIXED or isinstance(value, Enum) for value in values.values()):
        return None
    copy: object = mapper.class_manager.new_instance()
    instance_dict(copy).update(values)
    return copy


@lru_cache(256)
def _defaults(mapper: Mapper[Any]) -> list[Default] | None:
    """Return the attributes whose default is a function, with the function; None if one needs the rest of the row."""
    found: list[Default] = []
    names = {column: attribute.key for attribute in mapper.column_attrs for column in attribute.columns}
    for column in (column for table in mapper.tables for column in table.c):
        default: Any = getattr(column, "default", None)
        if default is not None and default.is_callable:
            if column not in names or not hasattr(default.arg, "__wrapped__"):
                return None
            found.append((names[column], default.arg))
    return found
