"""What keeps a long run honest and alive: incidents and what is done about them, heartbeats, the watchdog."""
