"""The demo song and the code that composes, plays and sings it."""
