"""The speech decoder's stage, and sound made with what it trained."""
