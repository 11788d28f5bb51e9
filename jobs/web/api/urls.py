"""Which operations has the API, and what does its OpenAPI document say? Staff read it at /api/docs.

Its one rule: the document names every answer, so every operation gets the refusals that the site may give. Django's
CSRF check guards the sessions, which ninja alone would leave to each operation.
"""

from http import HTTPStatus
from typing import Any

from django.db.transaction import non_atomic_requests
from django.urls import URLPattern
from ninja import NinjaAPI, Router
from ninja.openapi.docs import Swagger
from ninja.openapi.schema import OpenAPISchema

from jobs.toolkit.uploads import accepts_uploads
from jobs.web.api import (
    alerts,
    channels,
    files,
    health,
    jobs,
    kept,
    problems,
    records,
    resources,
    routes,
    runs,
    schedules,
    sources,
    tokens,
)
from jobs.web.views import for_staff

REFUSALS = (400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503, 507)
ROUTERS = [
    ("/schedules", schedules.router),
    ("/runs", runs.router),
    ("/runs", records.router),
    ("/jobs", jobs.router),
    ("/uploads", files.uploading),
    ("/files", files.router),
    ("/resources", resources.router),
    ("", health.router),
    ("", kept.router),
    ("/webhook-sources", sources.router),
    ("/webhooks", sources.received),
    ("/tokens", tokens.router),
    ("/alerts", alerts.router),
    ("/channels", channels.router),
    ("/silences", alerts.silences),
]
PROBLEM = {"$ref": "#/components/schemas/Problem"}


class API(NinjaAPI):
    def get_openapi_operation_id(self, operation: Any) -> str:
        return str(operation.view_func.__name__)

    def get_openapi_schema(self, **options: Any) -> OpenAPISchema:
        document = super().get_openapi_schema(**options)
        schemas = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= {**schemas.pop("$defs"), "Problem": schemas}
        for operations in document["paths"].values():
            operations.pop("head", None)  # every address with GET takes it
            for operation in operations.values():
                operation["responses"] |= {status: _refusal(status) for status in REFUSALS}
        return document


def _refusal(status: int) -> dict[str, Any]:
    return {
        "description": problems.SENTENCES.get(status, HTTPStatus(status).phrase),
        "content": {problems.MEDIA_TYPE: {"schema": PROBLEM}},
    }


def _assembled() -> API:
    api = API(
        title="Punctual",
        version="1",
        urls_namespace="api",
        auth=[routes.Token(), routes.Session()],
        parser=routes.Bodies(),
        renderer=routes.Renderer(),
        docs=Swagger(settings={"validatorUrl": None}),  # which would load a picture from another host
        docs_decorator=for_staff,
    )
    routes.handle_errors(api)
    api.add_decorator(routes.refuse_unknown_parameters, mode="view")
    for prefix, router in ROUTERS:
        _take_head(router)
        api.add_router(prefix, router)
    return api


def _take_head(router: Router) -> None:
    """Let HEAD do what GET does; ninja would answer 405."""
    for view in router.path_operations.values():
        for operation in view.operations:
            if "GET" in operation.methods:
                operation.methods.append("HEAD")


def _guarded(patterns: list[Any]) -> list[Any]:
    """Let Django check the CSRF token of requests with a session, and the site take files for `upload` only.

    A request that waits for a run, or for a channel, has no transaction, also with ATOMIC_REQUESTS.
    """
    for pattern in patterns:
        if isinstance(pattern, URLPattern):
            pattern.callback.csrf_exempt = False  # type: ignore[attr-defined] # ninja sets it
            if pattern.name == files.upload.__name__:
                accepts_uploads(*files.UPLOADERS)(pattern.callback)
            if pattern.name in {runs.get_run.__name__, channels.test_channel.__name__}:
                non_atomic_requests(pattern.callback)
    return patterns


api = _assembled()
app_name = api.urls_namespace
urlpatterns = _guarded(api.urls[0])
