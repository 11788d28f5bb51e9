"""Where may mail go, and does the server take it? Addresses and MAIL_DOMAINS, and a session with the mail server."""
