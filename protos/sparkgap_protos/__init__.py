"""Messages between client, server and the processes of a node, and the codec for what is pickled inside them.

`PROTOCOL` is the version of the messages that this release speaks; both sides carry it in every request.
"""

PROTOCOL = 1

# What the server refuses; the client says it first.
MOST_NESTED_PREDICTIONS = 32
MOST_TYPE_CHARACTERS = 1_000_000
MOST_TYPE_DEPTH = 100
