"""Three addresses."""

from django.urls import path

from . import views

urlpatterns = [
    path("", views.page),
    path("announce/<slug:text>/", views.announce),
    path("load/<int:count>/", views.load),
]
