"""Channels' live server: daphne in a process forked from this one, and a real browser."""

import os

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from channels.testing import ChannelsLiveServerTestCase
from django.contrib.auth.models import User
from playwright.sync_api import expect, sync_playwright

PATIENCE_MS = 30_000


class LiveFeed(ChannelsLiveServerTestCase):
    host = "127.0.0.1"

    def test_this_process_the_server_and_two_pages_share_a_layer(self):
        """And a database: what one says, or writes, the others see."""
        User.objects.create_user("ada")
        layer = get_channel_layer()
        expect.set_options(timeout=PATIENCE_MS)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=os.environ["SITE_BROWSER"],
                args=os.environ["SITE_BROWSER_FLAGS"].split(),
                timeout=4 * PATIENCE_MS,
            )
            pages = [browser.new_page() for _ in range(2)]
            for page in pages:
                page.goto(self.live_server_url)
                expect(page.locator("#users")).to_have_text("ada")
                expect(page.locator("#state")).to_have_text("connected")
            members = layer.sync.group_channels("orders")
            assert len(members) == 2
            layer.sync.group_send("orders", {"type": "order", "said": "to all"})
            layer.sync.send(members[0], {"type": "order", "said": "to one"})
            pages[0].request.get(f"{self.live_server_url}/announce/tea/")
            said = ["to all", "tea blocking", "tea in a loop"]
            heard = []
            for page in pages:
                expect(page.locator("li").filter(has_text="tea in a loop")).to_have_count(1)
                heard.append(page.locator("li").all_inner_texts())
            assert sorted(heard) == sorted([[said[0], "to one", *said[1:]], said])
            browser.close()
        # Playwright's loop is gone: this one is asgiref's.
        assert async_to_sync(layer.group_count)("nobody") == 0
        while layer.sync.group_count("orders"):
            pass  # the server notices that the pages have gone
