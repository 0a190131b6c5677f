"""What a page takes for granted: names that its examples use without making them."""
