"""Object storage: addresses of buckets, their objects, and the room on this machine for copies of them."""
