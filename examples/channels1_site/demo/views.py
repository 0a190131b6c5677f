"""HTTP views: ordinary Django, some of which send to channels and groups."""

# ruff: noqa: ARG001  (Django and Channels say which arguments there are)

import hashlib
import os

from channels import Channel, Group
from django.http import HttpResponse, HttpResponseNotAllowed, JsonResponse, StreamingHttpResponse

DOWNLOAD_BYTES = 5 * 1024 * 1024


def patterned_bytes(count):
    """Return `count` bytes that a client can recompute, and that no two chunks share."""
    blocks = (hashlib.sha256(str(number).encode()).digest() for number in range(count // 32 + 1))
    return b"".join(blocks)[:count]


def index(request):
    """Answer at once; say which worker did."""
    response = HttpResponse("hello\n", content_type="text/plain")
    response["X-Worker-Pid"] = str(os.getpid())
    return response


def request_seen(request, rest):
    """Answer with what Django saw of the request."""
    return JsonResponse(
        {
            "method": request.method,
            "path": request.path,
            "query": {key: request.GET.getlist(key) for key in request.GET},
            "header": request.META.get("HTTP_X_EXAMPLE"),
            "cookies": request.COOKIES,
            "body_bytes": len(request.body),
            "body_sha256": hashlib.sha256(request.body).hexdigest(),
        }
    )


def upload(request):
    """Take a multipart form with one file; answer with its name, size and digest."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    received = request.FILES["file"]
    digest = hashlib.sha256()
    for chunk in received.chunks():
        digest.update(chunk)
    return JsonResponse(
        {
            "name": received.name,
            "bytes": received.size,
            "sha256": digest.hexdigest(),
            "title": request.POST["title"],
        }
    )


def download(request):
    """Answer with 5 MB, which Channels sends in messages of 512 KiB."""
    return HttpResponse(
        patterned_bytes(int(request.GET.get("bytes", DOWNLOAD_BYTES))),
        content_type="application/octet-stream",
    )


def stream(request):
    """Answer piece by piece: one message for each."""
    lines = (f"line {number}\n" for number in range(int(request.GET.get("lines", "50"))))
    return StreamingHttpResponse(lines, content_type="text/plain")


def visits(request):
    """Count the visits of one browser in its session."""
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse({"visits": request.session["visits"]})


def send_to_room(request, room):
    """Send the posted text to every websocket in the room, `times` times."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    for _ in range(int(request.POST.get("times", "1"))):
        # Not at the end of the consumer, which is the default, but now.
        Group(f"room-{room}").send({"text": request.POST["text"]}, immediately=True)
    return HttpResponse(status=204)


def background(request, room):
    """Hand the posted text to a background worker, now or after `delay_ms` milliseconds."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    task = {"room": room, "text": request.POST["text"]}
    delay_ms = int(request.POST.get("delay_ms", "0"))
    if delay_ms:
        # Needs `manage.py rundelay`, which keeps it in the database until it is due.
        delayed = {"channel": "background.shout", "content": task, "delay": delay_ms}
        Channel("asgi.delay").send(delayed, immediately=True)
    else:
        Channel("background.shout").send(task, immediately=True)
    return HttpResponse(status=202)


def failure(request):
    """Raise: the answer is a 500, and the worker goes on."""
    raise RuntimeError("this view always fails")
