"""A plain Django site without Punctual: its one view calls `delay()`. `gunicorn benchmarks.bare_site`."""

import json

from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from benchmarks.bare import app


@csrf_exempt
def start(request: HttpRequest) -> JsonResponse:
    asked = json.loads(request.body)
    sent = app.tasks[asked["job"]].delay(**asked["arguments"])
    return JsonResponse({"id": sent.id}, status=202)


urlpatterns = [path("start", start)]
application = get_wsgi_application()
