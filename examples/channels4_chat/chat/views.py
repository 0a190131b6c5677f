"""The page of a room. It says which process made it, and where the others are."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

ROOMS = ["lobby", "kitchen", "workshop"]


def room(request: HttpRequest, name: str) -> HttpResponse:
    others = [
        {"number": number, "port": port}
        for number, port in enumerate(settings.CHAT_PORTS, start=1)
        if number != settings.CHAT_PROCESS
    ]
    context = {
        "room": name,
        "rooms": ROOMS if name in ROOMS else [*ROOMS, name],
        "process": settings.CHAT_PROCESS,
        "others": others,
        "host": request.get_host().partition(":")[0],
    }
    return render(request, "chat/room.html", context)
