"""The engine in processes of its own, and the server's end of them."""
