"""Errors as OpenAI's API has them: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

INVALID = "invalid_request_error"


class ApiError(Exception):
    """Ends a request with `status` and the error object. kind: the object's `type`."""

    def __init__(
        self, status: int, message: str, kind: str = INVALID, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.body = status, error_body(message, kind, param, code)


def error_body(message: str, kind: str = INVALID, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    # Half of a surrogate pair, which JSON can spell and UTF-8 cannot, is spelled here, too.
    message = message.encode("utf-8", "backslashreplace").decode()
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def too_many() -> ApiError:
    message = "the server has as many requests as it takes; try again later"
    return ApiError(429, message, "rate_limit_error", code="rate_limit_exceeded")


def add_handlers(app: FastAPI) -> None:
    """Every failure of the app, of a route or of no route, in the same form."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failure)


async def _api_error(request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = [part for part in first["loc"] if part != "body"]
    if not where:
        return JSONResponse(error_body("the body is not a JSON object (Content-Type: application/json)"), 400)
    name = ".".join(map(str, where))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return JSONResponse(error_body(f"{name} is not supported", param=name, code="unsupported_parameter"), 400)
    found = f", found {short(first['input'])}" if first["type"] != "missing" else ""
    return JSONResponse(error_body(f"{name}: {message[:1].lower()}{message[1:]}{found}", param=name), 400)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail.lower()}"
    if error.status_code == 404:
        message += f", expected one of {', '.join(request.app.state.paths)}"
    return JSONResponse(error_body(message), error.status_code, error.headers)


async def _failure(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body("the server failed; its terminal says why", "server_error"), 500)


def short(value: object) -> str:
    """A value as JSON spells it, or its beginning."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:60] + "..."
