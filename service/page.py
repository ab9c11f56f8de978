from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response


def router(service, access):
    return APIRouter()


def problem(request: Request, status: int, sentence: str) -> Response:
    return PlainTextResponse(sentence, status)
