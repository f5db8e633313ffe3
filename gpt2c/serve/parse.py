"""Whether a request's body is JSON as RFC 8259 has it: UTF-8, without NaN and Infinity, of whole characters."""

from __future__ import annotations

import json


def problem(body: bytes) -> str:
    """Why it is not, in a sentence, or nothing."""
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_number)
        if b"\\u" in body:  # which may spell half of a character, in a name or a text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = json.dumps(error.object[error.start])
        return f"the body holds {half}, half of a character, expected both halves one after the other"
    except UnicodeDecodeError as error:
        return f"the body is not UTF-8: its byte {error.start} is 0x{body[error.start]:02x}"
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        return f"the body is not JSON: {error.msg[:1].lower()}{error.msg[1:]}, {at}"
    except RecursionError:
        return "the body is not read: its lists and objects are nested too deeply"
    except ValueError as error:
        return str(error) if isinstance(error, _NoNumber) else "the body is not read: a number has too many digits"
    return ""


class _NoNumber(ValueError):
    pass


def _no_number(name: str) -> float:
    raise _NoNumber(f"the body is not JSON: it holds {name}, which is no number there")
