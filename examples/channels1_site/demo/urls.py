"""HTTP routes."""

from django.conf.urls import url

from demo import views

urlpatterns = [
    url(r"^$", views.index),
    url(r"^request/(?P<rest>.*)$", views.request_seen),
    url(r"^upload$", views.upload),
    url(r"^download$", views.download),
    url(r"^stream$", views.stream),
    url(r"^visits$", views.visits),
    url(r"^rooms/(?P<room>[\w.-]+)$", views.send_to_room),
    url(r"^background/(?P<room>[\w.-]+)$", views.background),
    url(r"^failure$", views.failure),
]
